"""Deterministic batch orders across ranks, and a DataLoader that resumes at the position of a checkpoint."""

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

_WORTH_A_THREAD = 2**16  # values of a batch; smaller batches are faster without prefetching
_ORDER = 1000  # separates the random streams of the order from those of the data


class ActivationDataset(Dataset[ActivationBatch]):
    """Activations and their concepts in memory, indexed by a tensor of positions: an item is a whole batch.

    Args:
        activations: `(n, d_in)`.
        concepts: int64 `(n,)` or bool `(n, n_concepts)`.
        target: What is to be reconstructed instead of the activations, `(n, d_out)`; None for nothing else.

    Example:
        >>> import torch
        >>> from sae_lightning.data.loading import ActivationDataset
        >>> dataset = ActivationDataset(torch.eye(3), torch.tensor([0, 1, -1]))
        >>> dataset[torch.tensor([2, 0])].concepts
        tensor([-1,  0])
    """

    def __init__(self, activations: Tensor, concepts: Tensor, target: Tensor | None = None) -> None:
        self.activations = activations
        self.concepts = concepts
        self.target = target

    def __len__(self) -> int:
        return len(self.activations)

    def __getitem__(self, index: Tensor) -> ActivationBatch:
        target = None if self.target is None else self.target[index]
        return ActivationBatch(self.activations[index], self.concepts[index], target=target)


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
    """Base of samplers that yield batch indices and count how many batches a run has read.

    It derives from DistributedSampler so that Lightning does not replace it.

    A run may resume with another number of processes or another batch size. The rest of the epoch is then divided into
    batches of the new size, starting at the first unread sample: no sample is repeated, and only an incomplete last
    batch is dropped.

    Args:
        per_step: Samples per step, over all processes.

    Attributes:
        position: Batches read so far, over all epochs; also the number of the next batch.
        resumed: Whether `position` was read from a checkpoint, in which case `set_epoch` does not change it.
        before: Batches per epoch and samples per step of the checkpoint, if they differ from the current ones; else
            None.
    """

    def __init__(self, per_step: int) -> None:
        self.per_step = per_step
        self.position = 0
        self.resumed = False
        self.before: tuple[int, int] | None = None
        self._shift = (-1, 0)  # epoch whose batch size changed, and the offset of its batches in samples

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of batches per epoch."""

    @abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """Yield the indices of an epoch's batches, starting at `position`."""

    def place(self, position: int) -> tuple[int, int]:
        """Return the epoch of a batch, and the index of its first sample in the order of that epoch."""
        epoch, batch = divmod(position, len(self))
        return epoch, batch * self.per_step + (self._shift[1] if self._shift[0] == epoch else 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and the batch counts that are needed to interpret it."""
        counts = {"length": len(self), "per_step": self.per_step}
        return {"position": self.position, "shift": list(self._shift), **counts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at the next batch; if the global batch size changed, at the next unread sample.

        Args:
            state: This rank's state. If the number of processes changed: the state of rank 0, with the states of all
                ranks under the key `ranks`.

        Raises:
            ValueError: If the state does not say how the data were divided into batches.
        """
        missing = {"length", "per_step", "shift"} - state.keys()
        if missing:
            raise ValueError(
                f"the checkpoint must say how its data were divided into batches, but lacks "
                f"{', '.join(sorted(missing))}, like checkpoints of an earlier version: load_sae can read its weights, "
                "but training cannot resume from it"
            )
        before = state["length"], state["per_step"]
        self.before = None if before == (len(self), self.per_step) else before
        self.resume(state)

    def resume(self, state: dict[str, Any]) -> None:
        """Set the position from a state, after `before` has been set."""
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

        The first epoch begins at batch 0, even if batches were read before to initialize a model. A sequence that was
        created for a later epoch begins at that epoch.
        """
        if not self.resumed and (epoch == 0 or self.position == 0):
            self.position = epoch * len(self)


def batches_done(done: int, length: int, per_step: int, new_length: int, new_per_step: int) -> int:
    """Number of batches that count as done after the batch size changes within an epoch.

    Args:
        done: Batches done with the old size.
        length: Batches per epoch with the old size.
        per_step: Old samples per batch, over all processes.
        new_length: Batches per epoch with the new size.
        new_per_step: New samples per batch, over all processes.

    Example:
        >>> from sae_lightning.data.loading import batches_done
        >>> batches_done(5, length=10, per_step=4, new_length=20, new_per_step=2)
        10
    """
    return max(0, new_length - (length - done) * per_step // new_per_step) if done else 0


class BatchIndices(BatchSequence):
    """Sampler of the positions of one batch at a time; the ranks' batches are disjoint and never padded.

    All ranks use the same order and take every `world_size`-th position of each global batch. Together, their batches
    equal the batch of a single process with batch size `world_size * batch_size`.

    Args:
        n: Number of samples.
        batch_size: Samples per batch and rank, at least 1.
        rank: Rank of this process.
        world_size: Number of processes.
        shuffle_seed: Seed of the order, which changes every epoch; None keeps the stored order.
        drop_last: Whether to drop the last batch of an epoch if it is not full on every rank.

    Example:
        >>> from sae_lightning.data.loading import BatchIndices
        >>> list(BatchIndices(6, 2, rank=0, world_size=2, shuffle_seed=None, drop_last=False))
        [tensor([0, 2]), tensor([4])]
        >>> list(BatchIndices(6, 2, rank=1, world_size=2, shuffle_seed=None, drop_last=False))
        [tensor([1, 3]), tensor([5])]
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
        start = 0 if self.shuffle_seed is None else self.position  # evaluation always starts at the first sample
        order, order_epoch = torch.arange(self.n), None
        for position in range(start, start + len(self)):
            epoch, first = self.place(position)
            if self.shuffle_seed is not None and epoch != order_epoch:
                order = torch.randperm(self.n, generator=seeded_generator(self.shuffle_seed, _ORDER, epoch))
                order_epoch = epoch
            yield order[first : first + self.per_step][self.rank :: self.world_size]


def _one_ahead(batches: Iterator[Any]) -> Iterator[Any]:
    """Prepare each large batch in a thread while the previous one is used."""
    with ThreadPoolExecutor(1) as thread:
        ahead: Future[Any] | None = None
        while True:
            batch = next(batches, None) if ahead is None else ahead.result()
            if batch is None:
                return
            ahead = thread.submit(next, batches, None) if batch[0].numel() >= _WORTH_A_THREAD else None
            yield batch


def _leave_signals(worker: int) -> None:
    """Ignore SIGTERM in workers: when a whole job is signaled, the training process decides how to stop."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class ActivationLoader(DataLoader[Any]):
    """DataLoader of whole batches whose position is saved in checkpoints (Lightning calls `state_dict`).

    It counts the batches that it has yielded, not those that workers have prefetched, so a resumed run starts at the
    next batch for any number of workers. The constructor is DataLoader's, because Lightning may re-create the loader.
    torchdata's StatefulDataLoader does not fit: it saves the state of the newest iterator, which may be the one that
    initialized a model, and none after training has ended.

    Example:
        >>> import torch
        >>> from sae_lightning.data.loading import ActivationDataset, ActivationLoader, BatchIndices
        >>> dataset = ActivationDataset(torch.zeros(4, 1), torch.arange(4))
        >>> indices = BatchIndices(4, 2, rank=0, world_size=1, shuffle_seed=None, drop_last=True)
        >>> [batch.concepts for batch in ActivationLoader.of(dataset, indices, pin_memory=False)]
        [tensor([0, 1]), tensor([2, 3])]
    """

    @classmethod
    def of(
        cls, dataset: Dataset[Any], sequence: BatchSequence, pin_memory: bool, num_workers: int = 0
    ) -> "ActivationLoader":
        """Create a loader of the batches that `sequence` yields.

        Args:
            dataset: Maps an item of `sequence` to a batch.
            sequence: The sampler.
            pin_memory: Whether to copy batches to pinned memory.
            num_workers: Worker processes; 0 reads in the training process.
        """
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
        """The sampler of the batches."""
        assert isinstance(self.sampler, BatchSequence)
        return self.sampler

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Yield one epoch. As a generator, it reads `position` when the first batch is requested, not earlier."""
        batches: Iterator[Any] = super().__iter__()
        try:
            for batch in batches if self.num_workers else _one_ahead(batches):
                self.sequence.position += 1
                yield batch
        finally:
            if self.num_workers:  # a traceback keeps the iterator alive, and with it workers that ignore SIGTERM
                batches._shutdown_workers()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the sampler."""
        return self.sequence.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume at the position of a checkpoint."""
        self.sequence.load_state_dict(state)
        self.sequence.resumed = True
