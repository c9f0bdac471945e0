import multiprocessing
from itertools import product
from typing import Any

import pytest
import torch

from sae_lightning.data.loading import ActivationDataset, ActivationLoader, BatchIndices

SIZES = list(product([1, 2, 7, 12, 13, 64], [1, 3, 4, 20], [1, 2, 3, 5]))


def ranks(n: int, batch: int, world: int, seed: int | None, drop_last: bool, epoch: int = 0) -> list[list[list[int]]]:
    """The positions by rank and batch."""
    samplers = [BatchIndices(n, batch, rank, world, seed, drop_last) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
        assert len(list(sampler)) == len(sampler)
    return [[indices.tolist() for indices in sampler] for sampler in samplers]


def flat(nested: Any) -> list[int]:
    return [i for rank in nested for batch in rank for i in batch]


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize(("n", "batch", "world"), SIZES)
def test_every_evaluation_sample_once(n: int, batch: int, world: int, seed: int | None) -> None:
    made = ranks(n, batch, world, seed, drop_last=False)
    assert sorted(flat(made)) == list(range(n))
    assert len({len(batches) for batches in made}) == 1  # every rank makes as many steps
    assert all(len(indices) <= batch for batches in made for indices in batches)


@pytest.mark.parametrize(("n", "batch", "world"), SIZES)
def test_training_batches_are_full_and_disjoint(n: int, batch: int, world: int) -> None:
    made = ranks(n, batch, world, 3, drop_last=True)
    chosen = flat(made)
    assert len(chosen) == len(set(chosen)) == n // (batch * world) * batch * world
    assert all(len(indices) == batch for batches in made for indices in batches)


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("world", [2, 3, 4])
def test_ranks_together_see_what_one_process_sees(world: int, drop_last: bool) -> None:
    together = ranks(101, 12 // world, world, 3, drop_last)
    (alone,) = ranks(101, 12, 1, 3, drop_last)
    for step, batch in enumerate(alone):
        merged = [0] * len(batch)
        for rank, batches in enumerate(together):
            merged[rank::world] = batches[step]
        assert merged == batch  # in the same order


def test_stored_order_without_a_seed() -> None:
    assert flat(ranks(10, 3, 1, None, drop_last=False, epoch=4)) == list(range(10))


def test_epochs_differ_and_repeat() -> None:
    orders = [flat(ranks(100, 5, 1, 3, True, epoch)) for epoch in (0, 1, 2, 1)]
    assert orders[1] == orders[3]
    assert len({tuple(order) for order in orders}) == 3
    assert flat(ranks(100, 5, 1, 4, True, 1)) != orders[1]
    assert all(order != sorted(order) for order in orders)


def test_loader_yields_whole_batches() -> None:
    x, concepts = torch.arange(14.0).view(7, 2), torch.arange(7)
    batches = list(ActivationLoader.of(ActivationDataset(x, concepts), BatchIndices(7, 3, 0, 1, None, False), False))
    assert [len(b.activations) for b in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([b.activations for b in batches]), x)
    assert torch.equal(torch.cat([b.concepts for b in batches]), concepts)


def test_a_state_that_does_not_say_how_data_were_dealt_is_refused() -> None:
    indices = BatchIndices(20, 4, 0, 1, 3, True)
    with pytest.raises(ValueError, match="how its data were divided into batches, but lacks length, per_step, shift"):
        indices.load_state_dict({"position": 2})


class Broken(ActivationDataset):
    """Cannot be read."""

    def __getitem__(self, index: Any) -> Any:
        raise ValueError("broken")


def test_workers_end_with_an_error_that_one_of_them_raises() -> None:
    dataset = Broken(torch.zeros(100, 2), torch.zeros(100, dtype=torch.long))
    loader = ActivationLoader.of(dataset, BatchIndices(100, 10, 0, 1, 0, drop_last=True), False, num_workers=1)
    with pytest.raises(ValueError, match="broken") as error:
        next(iter(loader))
    assert error.traceback  # which holds on to the loader's frames
    assert not multiprocessing.active_children()
