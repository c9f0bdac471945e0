"""Two processes with uneven shards give what one process gives."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from tests.helpers.metrics import CASES, assert_same, feed, make_samples

SHARDS = (slice(0, 83), slice(83, None))
SIZES = ([80, 3], [1, 100, 56])


def _run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = {}
    for case in CASES:
        for overlapping in {False, case.overlapping}:
            metric = feed(case, make_samples(overlapping=overlapping).part(SHARDS[rank]), SIZES[rank])
            metric.compute()
            metric._computed = None  # once more, from the restored local states
            results[case.name, overlapping] = tuple(metric.compute())
        idle = case.make()
        if rank == 0:
            idle.update(*case.arguments(make_samples()))
        results[case.name, "one idle"] = tuple(idle.compute())
    # DistributedSampler repeats samples to even the ranks: the sample for clustering must not notice
    case = CASES[-1]
    padded = feed(case, make_samples().part(slice(0, 130) if rank == 0 else slice(110, None)), [130])
    results[case.name, "padded"] = tuple(padded.compute())
    torch.save(results, f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("distributed")
    mp.spawn(_run, args=(str(folder),), nprocs=2)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_processes_equal_one(case, results):
    for overlapping in {False, case.overlapping}:
        reference = feed(case, make_samples(overlapping=overlapping), [240]).compute()
        for rank in (0, 1):
            assert_same(type(reference)(*results[rank][case.name, overlapping]), reference, case.exact)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_process_may_see_no_data(case, results):
    reference = feed(case, make_samples(), [240]).compute()
    for rank in (0, 1):
        assert_same(type(reference)(*results[rank][case.name, "one idle"]), reference, case.exact)


def test_repeated_samples_do_not_change_concept_discovery(results):
    case = CASES[-1]
    reference = feed(case, make_samples(), [240]).compute()
    assert_same(type(reference)(*results[0][case.name, "padded"]), reference, exact=True)
