import multiprocessing
import os
import pickle
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lightning.callbacks import RunCheckpoint
from sae_lightning.data import (
    ActivationBatch,
    ActivationDataModule,
    HeterogeneityDataModule,
    SeparabilityDataModule,
    StreamingDataModule,
)
from sae_lightning.data.streaming import ActivationStream, StreamSteps
from sae_lightning.data.synthetic.gaussian import GaussianConcepts
from tests.helpers.data import Clusters, ranked
from tests.helpers.probes import SaveAt
from tests.helpers.runs import QUIET, run_process
from tests.helpers.tensors import LargestTensor
from tests.helpers.trainers import train

PER_EPOCH, BATCH = 10, 16


def data(num_workers: int = 0, **changes: Any) -> SeparabilityDataModule:
    """Ten steps of an epoch."""
    sizes: dict[str, Any] = {"n_per_concept": 50, "train_fraction": 0.54, "n_val_per_concept": 9}
    sizes |= {"n_test_per_concept": 9, "batch_size": BATCH, "seed": 3}
    return SeparabilityDataModule(**{**sizes, "num_workers": num_workers, **changes})


def read(source: StreamingDataModule) -> list[torch.Tensor]:
    return [batch.activations for batch in source.train_dataloader()]


def batches(n: int, **changes: Any) -> list[torch.Tensor]:
    """The stream's first batches, by their number."""
    stream: Any = data(**changes).train_dataloader().dataset
    return [stream[step].activations for step in range(n)]


def assert_equal(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    assert [tuple(x.shape) for x in found] == [tuple(x.shape) for x in wanted]
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def rows(x: torch.Tensor) -> set[tuple[float, ...]]:
    return set(map(tuple, x.tolist()))


# -- the stream -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_draw", [1, 4, 100])
def test_a_batch_is_a_function_of_its_number(per_draw: int) -> None:
    sampler = GaussianConcepts(torch.zeros(2, 3), torch.ones(2, 3)).batch
    stream = ActivationStream(sampler, 5, seed=1, rank=0, per_draw=per_draw)
    state = torch.get_rng_state()
    first = stream[7]
    assert isinstance(first, ActivationBatch)
    assert first.activations.shape == (5, 3)
    stream[0], stream[10**12]
    assert torch.equal(stream[7].activations, first.activations)
    assert torch.equal(stream[7].concepts, first.concepts)
    assert torch.equal(state, torch.get_rng_state())
    drawn = torch.cat([stream[step].activations for step in range(2 * per_draw + 1)])
    assert len(rows(drawn)) == 5 * (2 * per_draw + 1)  # no sample twice


def test_seeds_ranks_steps_and_splits_share_no_sample() -> None:
    sources = [(ranked(data(seed=seed), rank, 2)) for seed in (3, 4) for rank in (0, 1)]
    streams: list[Any] = [source.train_dataloader().dataset for source in sources]
    drawn = [stream[step].activations for stream in streams for step in range(25)]
    drawn += [data(seed=seed).split(split).activations for seed in (3, 4) for split in ("val", "test")]  # type: ignore[arg-type]
    for first, second in combinations(map(rows, drawn), 2):
        assert not first & second


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
def test_workers_change_no_sample(num_workers: int) -> None:
    assert_equal(read(data(num_workers)), batches(PER_EPOCH))


def test_rotated_points_do_not_depend_on_workers() -> None:
    def stream(num_workers: int) -> list[torch.Tensor]:
        source = HeterogeneityDataModule(n_per_concept=10_000, rotate=True, seed=0, num_workers=num_workers)
        return read(source)

    assert_equal(stream(0), stream(2))


def where(n: int, generator: torch.Generator) -> ActivationBatch:
    """Says in which process, on how many threads and with what seed a batch is drawn."""
    told = [os.getpid(), torch.get_num_threads(), generator.initial_seed() % 2**31]
    return ActivationBatch(torch.tensor(told).expand(n, 3).double(), torch.zeros(n).long())


class Where(StreamingDataModule):
    def sampler(self) -> Any:
        return where

    def make_split(self, split: Any) -> Any:
        raise AssertionError(f"training needs no {split} split")


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_are_processes_with_one_thread(num_workers: int) -> None:
    torch.set_num_threads(2)
    n = 12_000  # so large that batches are drawn one by one
    made = torch.stack([x[0] for x in read(Where(3, [], 6 * n, n, 4, num_workers, 0))])
    processes, threads, seeds = (set(column.tolist()) for column in made.T)
    assert len(processes) == max(num_workers, 1)
    assert (os.getpid() in processes) == (num_workers == 0)
    assert threads == {1 if num_workers else 2}
    assert len(seeds) == 6


@pytest.mark.parametrize("source", [data(), HeterogeneityDataModule(rotate=True, frequencies=(1, 2, 3, 4, 5), seed=0)])
def test_workers_may_be_started_in_any_way(source: StreamingDataModule) -> None:
    """Where processes are spawned, what they need is pickled: it must be small and whole."""
    stream: Any = source.train_dataloader().dataset
    pickled = pickle.dumps(stream)
    assert len(pickled) < 10**6
    assert torch.equal(pickle.loads(pickled)[3].activations, stream[3].activations)


def test_training_takes_the_memory_of_a_batch() -> None:
    """The paper's 22.4 million points would take 11 GB."""
    with LargestTensor() as largest:
        source = HeterogeneityDataModule(seed=0, num_workers=0)
        iterator = iter(source.train_dataloader())
        for _ in range(5):
            assert next(iterator).activations.shape == (2048, 128)
    assert largest.numel == 2048 * 128
    assert source._splits == {}


def test_small_batches_are_drawn_together_up_to_a_bound() -> None:
    with LargestTensor() as largest:
        iterator = iter(data().train_dataloader())
        for _ in range(5):
            assert next(iterator).activations.shape == (BATCH, 2)
    assert BATCH * 2 < largest.numel <= 2**16


# -- epochs ---------------------------------------------------------------------------------------------------------


def test_epochs_go_on_with_fresh_batches() -> None:
    loader = data().train_dataloader()
    seen = []
    for epoch in range(3):
        loader.sequence.set_epoch(epoch)
        seen += [batch.activations for batch in loader]
    assert_equal(seen, batches(3 * PER_EPOCH))
    assert len(rows(torch.cat(seen))) == 3 * PER_EPOCH * BATCH


def test_the_first_epoch_begins_at_the_start_and_a_resumed_one_where_it_stood() -> None:
    steps = StreamSteps(10, BATCH, 1)
    steps.position = 4  # read to initialise a model
    steps.set_epoch(0)
    assert list(steps) == list(range(10))
    steps.position = 7  # an epoch cut short, as by limit_train_batches
    steps.set_epoch(1)
    assert list(steps) == list(range(7, 17))
    late = StreamSteps(10, BATCH, 1)
    late.set_epoch(3)
    assert list(late) == list(range(30, 40))
    resumed = StreamSteps(10, BATCH, 1)
    resumed.position, resumed.resumed = 5, True
    resumed.set_epoch(0)
    assert next(iter(resumed)) == 5


def test_every_rank_makes_as_many_steps() -> None:
    for world_size in (1, 2, 3, 5):
        lengths = {len(ranked(data(), rank, world_size).train_dataloader()) for rank in range(world_size)}
        assert lengths == {6 * 27 // (BATCH * world_size)}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_position_is_that_of_the_batches_handed_out(num_workers: int) -> None:
    """Workers prepare more."""
    loader = data(num_workers).train_dataloader()
    iterator = iter(loader)
    for step in range(4):
        assert loader.state_dict()["position"] == step
        next(iterator)
    again = data(2 - num_workers).train_dataloader()
    again.load_state_dict(loader.state_dict())
    assert torch.equal(next(iter(again)).activations, batches(5)[4])
    assert torch.equal(next(iterator).activations, batches(5)[4])


def test_a_loader_left_half_read_ends_its_workers() -> None:
    for _ in data(2).train_dataloader():
        break
    assert multiprocessing.active_children() == []


# -- in a Trainer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [0, 2])
def test_training_begins_with_the_samples_that_initialise(num_workers: int) -> None:
    seen, module, trainer = train(25, data(num_workers))
    assert_equal(seen, batches(25))
    torch.testing.assert_close(module.sae.standardizer.input_mean, torch.cat(seen)[:50].mean(0))
    assert isinstance(trainer.train_dataloader.sampler, StreamSteps)
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("limit", [None, 7], ids=["whole epochs", "epochs cut short"])
@pytest.mark.parametrize(
    "saved", ["mid-epoch", "at an epoch's end", "in a later epoch", "after training", "at the end"]
)
@pytest.mark.parametrize(("before", "after"), [(0, 0), (2, 2), (2, 0)], ids=["in process", "workers", "then none"])
def test_a_resumed_run_goes_on_with_the_next_batch(
    before: int, after: int, saved: str, limit: int | None, tmp_path: Path
) -> None:
    per_epoch = limit or PER_EPOCH
    step = {"at an epoch's end": per_epoch, "in a later epoch": 2 * per_epoch + 3}.get(saved, 4)
    path, options = tmp_path / "a.ckpt", {"limit_train_batches": limit}
    if saved == "after training":
        train(step, data(before), **options)[2].save_checkpoint(path)
    elif saved == "at the end":  # what the command line uses
        callback = RunCheckpoint(str(tmp_path), every_n_steps=100)
        train(step, data(before), callback, **options)
        path = tmp_path / "last.ckpt"
    else:
        train(step + 2, data(before), SaveAt(step, path), **options)
    seen, _, trainer = train(30, data(after), ckpt_path=path, **options)
    assert_equal(seen, batches(30)[step:])
    assert trainer.train_dataloader.state_dict()["position"] == 30


@pytest.mark.parametrize("saved", [5, 7, 17])
def test_in_memory_data_resume_exactly_where_epochs_are_cut_short(saved: int, tmp_path: Path) -> None:
    whole = train(25, Clusters(), limit_train_batches=7)[0]
    train(saved + 1, Clusters(), SaveAt(saved, tmp_path / "a.ckpt"), limit_train_batches=7)
    resumed = train(25, Clusters(), ckpt_path=tmp_path / "a.ckpt", limit_train_batches=7)[0]
    assert_equal(resumed, whole[saved:])


def test_loaders_made_anew_every_epoch_do_not_repeat() -> None:
    seen = train(25, data(), reload_dataloaders_every_n_epochs=1)[0]
    assert_equal(seen, batches(25))


@pytest.mark.parametrize("source", [data(), Clusters()], ids=["stream", "memory"])
def test_lightning_may_not_replace_the_order(source: ActivationDataModule) -> None:
    with pytest.raises(ValueError, match=r"trainer.overfit_batches must be 0, .*, but is 3"):
        train(5, source, overfit_batches=3)


@pytest.mark.slow
def test_two_processes_share_no_sample(tmp_path: Path) -> None:
    """DDP with gloo; each rank draws its own stream, in the order of its numbers."""
    args = [
        "--model",
        "SpaDE",
        "--model.d_sae",
        8,
        "--model.n_init_samples",
        50,
        "--trainer.max_steps",
        15,
        "--trainer.max_epochs",
        -1,
    ]
    args += ["--data", "SeparabilityDataModule", "--data.n_per_concept", 100, "--data.train_fraction", 0.54]
    args += ["--data.n_val_per_concept", 9, "--data.n_test_per_concept", 9, "--data.batch_size", BATCH]
    args += ["--data.seed", 3, "--data.num_workers", 1, "--trainer.limit_val_batches", 0, *QUIET]
    args += ["--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"]
    args += ["--trainer.callbacks+=tests.helpers.probes.SeenBatches", "--trainer.callbacks.folder", tmp_path]
    run_process("fit", *args, "--run_dir", tmp_path / "run")
    saved = [torch.load(tmp_path / f"batches-{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert [(rank["sampler"], rank["steps"]) for rank in saved] == [("StreamSteps", 10)] * 2
    for rank, found in enumerate(saved):
        stream: Any = ranked(data(), rank, 2).train_dataloader().dataset
        assert_equal(list(found["batches"]), [stream[step].activations for step in range(15)])
    first, second = (rows(found["batches"].flatten(0, 1)) for found in saved)
    assert not first & second


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_workers", [-1, -5])
def test_bad_number_of_workers(num_workers: int) -> None:
    with pytest.raises(ValueError, match=f"num_workers must be at least 0, but is {num_workers}"):
        data(num_workers)


def test_the_training_split_is_not_held() -> None:
    with pytest.raises(ValueError, match=r"split must be 'val' or 'test' for data that are streamed; read train_"):
        data().split("train")


def test_an_epoch_smaller_than_a_batch() -> None:
    with pytest.raises(ValueError, match=r"at least one batch of batch_size \* processes = 163 samples, but holds 162"):
        data(batch_size=163).train_dataloader()
    with pytest.raises(ValueError, match=r"batch_size \* processes = 176 samples, but holds 162"):
        ranked(data(), 0, 11).train_dataloader()
