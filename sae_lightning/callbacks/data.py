"""What callbacks may ask of data: each capability is a protocol, which a data module has by offering its members."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import lightning.pytorch as pl
from torch import Tensor

from sae_lightning.data.activations.hosts.spliced import SplicedHost
from sae_lightning.data.contexts import Context
from sae_lightning.data.datamodule import Split
from sae_lightning.data.formal_language.sentences import SentenceDataset
from sae_lightning.data.images.datamodule import ImageDataset


def data_of(trainer: pl.Trainer) -> object:
    """The data module that a trainer runs on; None where it was given loaders."""
    return trainer.datamodule  # type: ignore[attr-defined]


@runtime_checkable
class HasConcepts(Protocol):
    """Data whose labels have names."""

    concept_names: list[str]
    """Names of the concepts, in the order of their labels; empty for unlabeled data."""


@runtime_checkable
class HasDimensions(Protocol):
    """Data that know the dimension of each concept."""

    dims: Sequence[int] | None
    """One dimension per concept; None where they are not known."""


class Samples(Protocol):
    """A split that is held in memory."""

    activations: Tensor
    """Raw activations, `(n, d_in)`."""
    concepts: Tensor
    """Labels, int64 `(n,)` with -1 for unlabeled, or bool `(n, n_concepts)`."""

    def __len__(self) -> int:
        """Number of samples."""


@runtime_checkable
class HasSamples(Protocol):
    """Data that hold their validation and test samples in memory."""

    d_in: int
    """Size of an activation."""
    concept_names: list[str]
    """Names of the concepts, in the order of their labels; empty for unlabeled data."""

    def split(self, split: Split) -> Samples:
        """One split, in stored order."""


@runtime_checkable
class HasContexts(Protocol):
    """Data that know where their activations come from."""

    def contexts(self, split: Split, positions: list[int]) -> list[Context]:
        """Where the activations at these positions of a held-out split (in stored order) come from."""


@runtime_checkable
class HasHost(Protocol):
    """Data that can run the model behind their activations with reconstructions in place."""

    def host(self) -> SplicedHost:
        """The model, and the batches on which its loss is measured."""


@runtime_checkable
class HasSentences(Protocol):
    """Sentences of a formal language."""

    max_length: int
    """Words of the longest sentence."""

    def split(self, split: Split) -> SentenceDataset:
        """One split, in stored order."""


@runtime_checkable
class HasImages(Protocol):
    """Images, which may have classes."""

    image_size: int
    """Height and width in pixels."""
    concept_names: list[str]
    """Names of the classes, in the order of their labels; empty for unlabeled images."""

    def split(self, split: Split) -> ImageDataset:
        """One split, in stored order."""
