"""Batches in an order that every rank knows, and a loader that goes on where a checkpoint stood."""

from abc import abstractmethod
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.seeding import seeded_generator

_WORTH_A_THREAD = 2**16  # values of a batch
_ORDER = 1000  # keeps the random streams of orders apart from those of the data


class ActivationDataset(Dataset[ActivationBatch]):
    """Activations with their concepts; an index is a tensor of positions, an item is a batch.

    Args:
        activations: `(n, d_in)`.
        concepts: int64 `(n,)` or bool `(n, n_concepts)`.
    """

    def __init__(self, activations: Tensor, concepts: Tensor) -> None:
        self.activations = activations
        self.concepts = concepts

    def __len__(self) -> int:
        return len(self.activations)

    def __getitem__(self, index: Tensor) -> ActivationBatch:
        return ActivationBatch(self.activations[index], self.concepts[index])


class BatchSequence(DistributedSampler[Any]):
    """The indices of a run's batches, one epoch at a time, and how far the run has come.

    It derives from DistributedSampler so that Lightning leaves it in place.

    Attributes:
        position: Batches handed out so far, over all epochs; it says which batch comes next.
        resumed: Whether the position came from a checkpoint, so that it holds whatever Lightning counts.
    """

    def __init__(self) -> None:
        self.position = 0
        self.resumed = False

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """The indices of an epoch's batches, from `position` on."""

    def state_dict(self) -> dict[str, int]:
        """Which batch comes next."""
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on with the batch that came next."""
        self.position = state["position"]

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch where the last one ended.

        The first one begins at the start, although batches may have been read already to initialise a model; and a
        sequence that is made anew for a later epoch begins at that epoch.
        """
        if not self.resumed and (epoch == 0 or self.position == 0):
            self.position = epoch * len(self)


class BatchIndices(BatchSequence):
    """Yields the positions of one batch at a time; the ranks' batches are disjoint and never padded.

    All ranks walk through one order and take every `world_size`-th position of each global batch, so that the
    ranks' batches together are the batch that one process of `world_size * batch_size` would see.

    Args:
        n: Number of samples.
        batch_size: Samples per batch and rank, at least 1.
        rank: This process.
        world_size: Number of processes.
        shuffle_seed: Seed of the order, drawn anew every epoch; None keeps the stored order.
        drop_last: Whether to leave out what does not fill a batch on every rank.
    """

    def __init__(
        self, n: int, batch_size: int, rank: int, world_size: int, shuffle_seed: int | None, drop_last: bool
    ) -> None:
        super().__init__()
        self.n = n
        self.per_batch = batch_size * world_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle_seed = shuffle_seed
        self.drop_last = drop_last

    def __len__(self) -> int:
        return self.n // self.per_batch if self.drop_last else -(-self.n // self.per_batch)

    def __iter__(self) -> Iterator[Tensor]:
        start = 0 if self.shuffle_seed is None else self.position  # stored order: always from its start
        order, order_epoch = torch.arange(self.n), None
        for position in range(start, start + len(self)):
            epoch, i = divmod(position, len(self))
            if self.shuffle_seed is not None and epoch != order_epoch:
                order = torch.randperm(self.n, generator=seeded_generator(self.shuffle_seed, _ORDER, epoch))
                order_epoch = epoch
            yield order[i * self.per_batch : (i + 1) * self.per_batch][self.rank :: self.world_size]


def _one_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Make each batch in a thread while the one before is used; small ones are not worth the hand-over."""
    with ThreadPoolExecutor(1) as thread:
        ahead: Future[Any] | None = None
        while True:
            batch = next(batches, None) if ahead is None else ahead.result()
            if batch is None:
                return
            ahead = thread.submit(next, batches, None) if batch[0].numel() >= _WORTH_A_THREAD else None
            yield batch


class ActivationLoader(DataLoader[Any]):
    """A DataLoader of whole batches whose position goes into checkpoints (Lightning asks for `state_dict`).

    It counts the batches that it has handed out, not those that worker processes have prepared, so a resumed run goes
    on with the next batch whatever the number of workers. (The constructor stays DataLoader's, since Lightning calls
    it anew. torchdata's StatefulDataLoader keeps the state of the iterator made last: here that is the one that
    initialises a model, not the one that trains it; and none once training has ended.)
    """

    @classmethod
    def of(
        cls, dataset: Dataset[Any], sequence: BatchSequence, pin_memory: bool, num_workers: int = 0
    ) -> "ActivationLoader":
        """Read the batches that `sequence` names."""
        return cls(dataset, sampler=sequence, batch_size=None, pin_memory=pin_memory, num_workers=num_workers)

    @property
    def sequence(self) -> BatchSequence:
        """What decides on the batches."""
        assert isinstance(self.sampler, BatchSequence)
        return self.sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """One epoch; a generator, so that reading starts with the first batch and at the position that then holds."""
        batches: Iterator[Any] = super().__iter__()
        for batch in batches if self.num_workers else _one_ahead(batches):
            self.sequence.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Where reading stands."""
        return self.sequence.state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where reading stood."""
        self.sequence.load_state_dict(state)
        self.sequence.resumed = True
