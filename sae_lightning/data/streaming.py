"""Training batches that are drawn when they are needed: endless, in the memory of a batch."""

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import Dataset

from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.datamodule import SPLIT_SEEDS, ActivationDataModule, Split
from sae_lightning.data.loading import ActivationDataset, ActivationLoader, BatchSequence
from sae_lightning.data.seeding import seeded_generator

_VALUES_PER_DRAW = 2**16  # small batches are drawn many at a time: one by one, most of the time would go into calls

BatchSampler = Callable[[int, torch.Generator], ActivationBatch]
"""Draws a batch of a given size; it must be picklable, and take all that is random from the generator."""


class ActivationStream(Dataset[ActivationBatch]):
    """An endless sequence of batches: item i is the i-th batch that this rank trains on.

    A batch is a function of `(seed, split, rank, step)` alone. Which worker process draws it, how far ahead, and
    whether the run was interrupted before it change nothing.

    Args:
        sampler: What draws a batch.
        batch_size: Samples per batch, at least 1.
        seed: Seed of the stream.
        rank: This process; the ranks' streams are independent.
        per_draw: Batches that are drawn together and held, at least 1.
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
        drawn = self._drawn[1]
        rows = slice(place * self.batch_size, (place + 1) * self.batch_size)
        return ActivationBatch(drawn.activations[rows], drawn.concepts[rows])


class StreamSteps(BatchSequence):
    """Counts the steps of a stream; every epoch goes on with new ones.

    With another number of processes each rank goes on with its own stream, at the step that all have reached; with
    another batch size, at the first draw that nobody has used. No sample comes twice.

    Args:
        steps_per_epoch: Batches of an epoch, at least 1.
        batch_size: Samples per batch and process.
        world_size: Number of processes.
        per_draw: Batches that are drawn together.
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
        """Which batch comes next, and how batches are drawn."""
        return {**super().state_dict(), "batch_size": self.batch_size, "per_draw": self.per_draw}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on behind all that was drawn."""
        self.position = state["position"]
        if state["batch_size"] != self.batch_size:  # draws are numbered, and would begin with the same samples
            self.position = -(-self.position // state["per_draw"]) * self.per_draw


class StreamingDataModule(ActivationDataModule):
    """A source whose training batches are drawn as training goes, and never repeat.

    Validation, test and prediction read splits that are drawn once. Subclasses offer a `sampler` of training batches
    besides `make_split`, which is asked for the held-out splits only.

    Args:
        d_in: Size of an activation.
        concept_names: Names of the concepts, in the order of their labels; empty for unlabelled data.
        samples_per_epoch: Training samples that count as an epoch, of all processes together.
        batch_size: Training samples per step and process, at least 1.
        eval_batch_size: Samples per step and process in validation, test and prediction, at least 1.
        num_workers: Processes that draw training batches ahead, each on one thread; 0 draws them in the training
            process. The samples are the same.
        seed: Seed of what is drawn; None takes the program's seed.

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
        """What draws training batches."""

    def split(self, split: Split) -> ActivationDataset:
        """A held-out split, drawn when it is first asked for.

        Raises:
            ValueError: If it is the training split, which is never held in memory.
        """
        if split == "train":
            raise ValueError(
                "split must be 'val' or 'test' for data that are streamed; read train_dataloader() instead"
            )
        return super().split(split)

    def train_dataloader(self) -> ActivationLoader:
        """New training batches, from the start of the stream."""
        per_draw = max(1, _VALUES_PER_DRAW // (self.batch_size * self.d_in))
        stream = ActivationStream(self.sampler(), self.batch_size, self.seed, self._processes()[0], per_draw)
        n_steps = self._steps_per_epoch(self.samples_per_epoch)
        steps = StreamSteps(n_steps, self.batch_size, self._processes()[1], per_draw)
        return ActivationLoader.of(stream, steps, pin_memory=torch.cuda.is_available(), num_workers=self.num_workers)
