"""Base classes of data modules."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

import lightning.pytorch as pl
import torch

from sae_lightning.data.loading import ActivationDataset, ActivationLoader, BatchIndices, PositionedDataset
from sae_lightning.data.ranks import data_ranks

Split = Literal["train", "val", "test"]
SPLIT_SEEDS: dict[Split, int] = {"train": 0, "val": 1, "test": 2}


def require_distinct(concept_names: Sequence[str]) -> None:
    """Raise a ValueError if a concept name occurs twice: metrics are logged under these names."""
    for i, name in enumerate(concept_names):
        if name in concept_names[:i]:
            raise ValueError(f"concept_names must be distinct, but {name!r} is there twice")


class SeededDataModule(pl.LightningDataModule):
    """Base of all data modules: a seed shared by all processes, and fixed batch sizes.

    Args:
        batch_size: Training samples per step and process, at least 1.
        eval_batch_size: Samples per step and process in validation, test and prediction, at least 1.
        seed: Seed of everything random in the data; None takes the global seed (`seed_everything`).

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(self, batch_size: int, eval_batch_size: int, seed: int | None) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = torch.initial_seed() if seed is None else seed

    def setup(self, stage: str | None = None) -> None:
        """Broadcast the seed of rank 0 to all ranks."""
        if self.trainer is not None:
            self.seed = self.trainer.strategy.broadcast(self.seed)

    def _processes(self) -> tuple[int, int]:
        """Rank of this process among those that read different data, and their number."""
        return data_ranks(self.trainer)

    def _steps_per_epoch(self, n: int) -> int:
        """Number of full batches in `n` training samples, the same on every rank."""
        per_step = self.batch_size * self._processes()[1]
        if n < per_step:
            raise ValueError(
                f"the training split must hold at least one batch of batch_size * processes = {per_step} samples, "
                f"but holds {n}"
            )
        overfit_batches = getattr(self.trainer, "overfit_batches", 0)
        if overfit_batches:
            raise ValueError(
                "trainer.overfit_batches must be 0, since it would replace the order of the batches, "
                f"but is {overfit_batches}"
            )
        return n // per_step


class ActivationDataModule(SeededDataModule, ABC):
    """Base of data modules with activations in memory, split into training, validation and test.

    Subclasses pass `d_in` and `concept_names` to this constructor, so that the command line can link `d_in` to the
    model before any data is read, and create the splits in `make_split`. Prediction reads the test split.
    Batches of validation, test and prediction hold the positions of their samples.

    Args:
        d_in: Number of features of an activation.
        concept_names: Names of the concepts, in the order of their labels; empty for unlabeled data.
        batch_size: Training samples per step and process, at least 1.
        eval_batch_size: Samples per step and process in validation, test and prediction, at least 1.
        seed: Seed of everything random in the data; None takes the global seed (`seed_everything`).

    Raises:
        ValueError: If an argument is out of range.
    """

    d_out: int | None = None
    """Size of the targets; None where batches have none."""

    def __init__(
        self, d_in: int, concept_names: list[str], batch_size: int, eval_batch_size: int, seed: int | None
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        require_distinct(concept_names)
        self.d_in = d_in
        self.concept_names = concept_names
        self._splits: dict[Split, ActivationDataset] = {}

    @property
    def n_concepts(self) -> int:
        """Number of concepts; 0 for unlabeled data."""
        return len(self.concept_names)

    @abstractmethod
    def make_split(self, split: Split) -> ActivationDataset:
        """Draw or read one split. It is called once per process and split."""

    def split(self, split: Split) -> ActivationDataset:
        """Return one split, which is created on first use."""
        if split not in self._splits:
            self._splits[split] = self.make_split(split)
        return self._splits[split]

    def train_dataloader(self) -> ActivationLoader:
        """Return a loader of shuffled training batches; the incomplete last batch of an epoch is dropped."""
        self._steps_per_epoch(len(self.split("train")))  # raises if the split is smaller than one batch
        return self._loader("train", self.batch_size)

    def val_dataloader(self) -> ActivationLoader:
        """Return a loader of all validation samples."""
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> ActivationLoader:
        """Return a loader of all test samples."""
        return self._loader("test", self.eval_batch_size)

    def predict_dataloader(self) -> ActivationLoader:
        """Return a loader of all test samples, in stored order."""
        return self._loader("test", self.eval_batch_size)

    def _loader(self, split: Split, batch_size: int) -> ActivationLoader:
        dataset = self.split(split)
        training = split == "train"
        seed = self.seed if training else None
        indices = BatchIndices(len(dataset), batch_size, *self._processes(), seed, drop_last=training)
        read = dataset if training else PositionedDataset(dataset)
        return ActivationLoader.of(read, indices, pin_memory=torch.cuda.is_available())
