"""Training batches that are generated on demand: an endless stream in constant memory."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset

from sae_lightning.data.batch import ActivationBatch, taken
from sae_lightning.data.datamodule import SPLIT_SEEDS, ActivationDataModule, Split
from sae_lightning.data.loading import ActivationDataset, ActivationLoader, BatchSequence
from sae_lightning.data.seeding import seeded_generator

_VALUES_PER_DRAW = 2**16  # small batches are drawn together, to amortize the overhead of the calls

BatchSampler = Callable[[int, torch.Generator], ActivationBatch]
"""Draws a batch of a given size. It must be picklable, and use no randomness but the generator's."""


class ActivationStream(Dataset[ActivationBatch]):
    """Endless sequence of batches: item i is the i-th training batch of this rank.

    A batch depends on `(seed, rank, step)` only, not on worker processes, prefetching or interruptions.

    Args:
        sampler: Draws a batch.
        batch_size: Samples per batch, at least 1.
        seed: Seed of the stream.
        rank: Rank of this process; the ranks' streams are independent.
        per_draw: Batches that are drawn together and cached, at least 1.

    Example:
        >>> import torch
        >>> from sae_lightning.data import ActivationBatch
        >>> from sae_lightning.data.streaming import ActivationStream
        >>> def sampler(n, generator):
        ...     return ActivationBatch(torch.rand(n, 2, generator=generator), torch.zeros(n, dtype=torch.long))
        >>> stream = ActivationStream(sampler, batch_size=3, seed=0, rank=0)
        >>> torch.equal(stream[7].activations, stream[7].activations)
        True
    """

    def __init__(self, sampler: BatchSampler, batch_size: int, seed: int, rank: int, per_draw: int = 1) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.per_draw = per_draw
        self._drawn: tuple[int, ActivationBatch] | None = None

    def __getitem__(self, step: int) -> ActivationBatch:
        draw, place = divmod(step, self.per_draw)
        if self._drawn is None or self._drawn[0] != draw:
            generator = seeded_generator(self.seed, SPLIT_SEEDS["train"], self.rank, draw)
            self._drawn = draw, self.sampler(self.per_draw * self.batch_size, generator)
        return taken(self._drawn[1], slice(place * self.batch_size, (place + 1) * self.batch_size))


class StreamSteps(BatchSequence):
    """Sampler of the step numbers of a stream; every epoch continues where the last one ended.

    With another number of processes, each rank resumes its own stream at the step that all ranks have reached; with
    another batch size, at the first unused draw. No sample is repeated.

    Args:
        steps_per_epoch: Batches per epoch, at least 1.
        batch_size: Samples per batch and process.
        world_size: Number of processes.
        per_draw: Batches that are drawn together.

    Example:
        >>> from sae_lightning.data.streaming import StreamSteps
        >>> steps = StreamSteps(steps_per_epoch=3, batch_size=8, world_size=1)
        >>> steps.position = 3
        >>> list(steps)
        [3, 4, 5]
    """

    def __init__(self, steps_per_epoch: int, batch_size: int, world_size: int, per_draw: int = 1) -> None:
        super().__init__(batch_size * world_size)
        self.steps_per_epoch = steps_per_epoch
        self.batch_size = batch_size
        self.per_draw = per_draw

    def __len__(self) -> int:
        return self.steps_per_epoch

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.position, self.position + self.steps_per_epoch))

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and how batches are drawn."""
        return {**super().state_dict(), "batch_size": self.batch_size, "per_draw": self.per_draw}

    def resume(self, state: dict[str, Any]) -> None:
        """Resume after everything that was drawn."""
        self.position = state["position"]
        if state["batch_size"] != self.batch_size:  # the current draw would begin with the same samples again
            self.position = -(-self.position // state["per_draw"]) * self.per_draw


class StreamingDataModule(ActivationDataModule):
    """Base of data modules whose training batches are generated on demand and never repeat.

    Validation, test and prediction read splits that are drawn once. Subclasses implement `sampler` for training batches
    and `make_split` for the held-out splits.

    Args:
        d_in: Number of features of an activation.
        concept_names: Names of the concepts, in the order of their labels; empty for unlabeled data.
        samples_per_epoch: Training samples that count as an epoch, over all processes.
        batch_size: Training samples per step and process, at least 1.
        eval_batch_size: Samples per step and process in validation, test and prediction, at least 1.
        num_workers: Worker processes that draw training batches ahead, each on one thread; 0 draws them in the training
            process. The samples do not depend on it.
        seed: Seed of all samples; None takes the global seed.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        d_in: int,
        concept_names: list[str],
        samples_per_epoch: int,
        batch_size: int,
        eval_batch_size: int,
        num_workers: int,
        seed: int | None,
    ) -> None:
        super().__init__(d_in, concept_names, batch_size, eval_batch_size, seed)
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, but is {num_workers}")
        self.samples_per_epoch = samples_per_epoch
        self.num_workers = num_workers

    @abstractmethod
    def sampler(self) -> BatchSampler:
        """Return the function that draws training batches."""

    def split(self, split: Split) -> ActivationDataset:
        """Return a held-out split, which is drawn on first use.

        Raises:
            ValueError: If it is the training split, which is never held in memory.
        """
        if split == "train":
            raise ValueError(
                "split must be 'val' or 'test' for data that are streamed; read train_dataloader() instead"
            )
        return super().split(split)

    def train_dataloader(self) -> ActivationLoader:
        """Return a loader of the stream of training batches."""
        per_draw = max(1, _VALUES_PER_DRAW // (self.batch_size * self.d_in))
        stream = ActivationStream(self.sampler(), self.batch_size, self.seed, self._processes()[0], per_draw)
        n_steps = self._steps_per_epoch(self.samples_per_epoch)
        steps = StreamSteps(n_steps, self.batch_size, self._processes()[1], per_draw)
        return ActivationLoader.of(stream, steps, pin_memory=torch.cuda.is_available(), num_workers=self.num_workers)
