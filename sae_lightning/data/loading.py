"""Batches in an order that every rank knows, and a loader that goes on where a checkpoint stood."""

import signal
from abc import ABC, abstractmethod
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


class PositionedDataset(Dataset[ActivationBatch]):
    """A dataset whose batches say which of its samples they hold.

    Args:
        samples: An index is a tensor of positions, an item is a batch.
    """

    def __init__(self, samples: ActivationDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: Tensor) -> ActivationBatch:
        return self.samples[index]._replace(positions=index)


class BatchSequence(DistributedSampler[Any], ABC):
    """The indices of a run's batches, one epoch at a time, and how far the run has come.

    It derives from DistributedSampler so that Lightning leaves it in place.

    A run may go on with another number of processes, or another batch size. Then a step takes another number of
    samples, and the rest of the epoch is dealt anew from the sample at which it stood: none comes twice, and none is
    left out but what no longer fills a batch at the end of the epoch.

    Args:
        per_step: Samples of a step, over all processes.

    Attributes:
        position: Batches handed out so far, over all epochs; it says which batch comes next.
        resumed: Whether the position came from a checkpoint, so that it holds whatever Lightning counts.
        before: Batches of an epoch and samples of a step in the checkpoint, where they were others; else None.
    """

    def __init__(self, per_step: int) -> None:
        self.per_step = per_step
        self.position = 0
        self.resumed = False
        self.before: tuple[int, int] | None = None
        self._shift = (-1, 0)  # an epoch that was dealt anew, and by how many samples its batches are moved

    @abstractmethod
    def __len__(self) -> int:
        """Batches of an epoch."""

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """The indices of an epoch's batches, from `position` on."""

    def place(self, position: int) -> tuple[int, int]:
        """Epoch of a batch, and the number of its first sample in the order of that epoch."""
        epoch, batch = divmod(position, len(self))
        return epoch, batch * self.per_step + (self._shift[1] if self._shift[0] == epoch else 0)

    def state_dict(self) -> dict[str, Any]:
        """Which batch comes next, and how batches are counted."""
        counts = {"length": len(self), "per_step": self.per_step}
        return {"position": self.position, "shift": list(self._shift), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on with the batch, or where steps take other samples with the sample, that came next.

        Args:
            state: A rank's state; where the number of processes has changed that of rank 0, and all of them as `ranks`.

        Raises:
            ValueError: If the state does not say how the data were dealt.
        """
        missing = {"length", "per_step", "shift"} - state.keys()
        if missing:
            raise ValueError(
                f"the checkpoint must say how its data were dealt, but lacks {', '.join(sorted(missing))}, as those of "
                "an earlier version do: load_sae reads its weights, but training cannot go on from it"
            )
        before = state["length"], state["per_step"]
        self.before = None if before == (len(self), self.per_step) else before
        self.resume(state)

    def resume(self, state: dict[str, Any]) -> None:
        """Find the place of a state in this sequence; `before` is known."""
        self.position, self._shift = state["position"], tuple(state["shift"])
        if self.before is None:
            return
        length, per_step = self.before
        epoch, batch = divmod(self.position, length)
        first = batch * per_step + (self._shift[1] if self._shift[0] == epoch else 0)
        done = batches_done(batch, length, per_step, len(self), self.per_step)
        self.position, self._shift = epoch * len(self) + done, (epoch, first - done * self.per_step)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch where the last one ended.

        The first one begins at the start, although batches may have been read already to initialise a model; and a
        sequence that is made anew for a later epoch begins at that epoch.
        """
        if not self.resumed and (epoch == 0 or self.position == 0):
            self.position = epoch * len(self)


def batches_done(done: int, length: int, per_step: int, new_length: int, new_per_step: int) -> int:
    """How many batches of an epoch count as done when batches become larger or smaller in its midst.

    Args:
        done: Batches that were done.
        length: Batches of an epoch before.
        per_step: Samples of a batch before, over all processes.
        new_length: Batches of an epoch now.
        new_per_step: Samples of a batch now.
    """
    return max(0, new_length - (length - done) * per_step // new_per_step) if done else 0


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
        super().__init__(batch_size * world_size)
        self.n = n
        self.rank = rank
        self.world_size = world_size
        self.shuffle_seed = shuffle_seed
        self.drop_last = drop_last

    def __len__(self) -> int:
        return self.n // self.per_step if self.drop_last else -(-self.n // self.per_step)

    def __iter__(self) -> Iterator[Tensor]:
        start = 0 if self.shuffle_seed is None else self.position  # stored order: always from its start
        order, order_epoch = torch.arange(self.n), None
        for position in range(start, start + len(self)):
            epoch, first = self.place(position)
            if self.shuffle_seed is not None and epoch != order_epoch:
                order = torch.randperm(self.n, generator=seeded_generator(self.shuffle_seed, _ORDER, epoch))
                order_epoch = epoch
            yield order[first : first + self.per_step][self.rank :: self.world_size]


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


def _leave_signals(worker: int) -> None:
    """A signal to end that is sent to all processes of a job is the training process's to heed."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


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
        return cls(
            dataset,
            sampler=sequence,
            batch_size=None,
            pin_memory=pin_memory,
            num_workers=num_workers,
            worker_init_fn=_leave_signals if num_workers else None,
        )

    @property
    def sequence(self) -> BatchSequence:
        """What decides on the batches."""
        assert isinstance(self.sampler, BatchSequence)
        return self.sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """One epoch; a generator, so that reading starts with the first batch and at the position that then holds."""
        batches: Iterator[Any] = super().__iter__()
        try:
            for batch in batches if self.num_workers else _one_ahead(batches):
                self.sequence.position += 1
                yield batch
        finally:
            if self.num_workers:  # an error holds on to the iterator, and workers that ignore signals to the program
                batches._shutdown_workers()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """Where reading stands."""
        return self.sequence.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where reading stood."""
        self.sequence.load_state_dict(state)
        self.sequence.resumed = True
