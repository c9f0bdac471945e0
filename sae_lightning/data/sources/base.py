"""Base classes of sources, and the examples that they yield: texts and images with concept labels."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from sae_lightning.nn.parts import Recorded

if TYPE_CHECKING:
    from PIL.Image import Image


class TextExample(NamedTuple):
    """A text, such as a sentence, with optional labels of its words or of the whole."""

    document: str
    """Name of its document; all examples of a document belong to the same split."""
    text: str
    """The text."""
    spans: tuple[tuple[int, int], ...] = ()
    """Positions of the labeled words: first character and one past the last, in the order of the text."""
    concepts: tuple[int, ...] = ()
    """Concept of each labeled word, -1 for none."""
    concept: int = -1
    """Concept of the text as a whole, -1 for none."""


class ImageExample(NamedTuple):
    """An image with an optional label."""

    document: str
    """Name of the image; all examples of the same name belong to the same split."""
    image: "Image"
    """The image, in grayscale or RGB."""
    concept: int = -1
    """Concept of the image, -1 for none."""


class UnreadableError(ValueError):
    """Raised for an example that cannot be read; the message names the example and the reason."""

    def __init__(self, document: str, reason: str) -> None:
        super().__init__(f"{document!r} cannot be read: {reason}")
        self.document = document
        self.reason = reason


Example_co = TypeVar("Example_co", TextExample, ImageExample, covariant=True)


class Source(Recorded, ABC, Generic[Example_co]):
    """Base of sources whose examples can be read in any order. A source records its constructor arguments.

    Attributes:
        concept_names: Names of the concepts, in the order of their labels; empty for unlabeled examples.
    """

    concept_names: list[str]

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of examples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example_co:
        """Return one example; the same index always returns the same example.

        Raises:
            UnreadableError: If it cannot be read.
        """


class StreamedSource(Recorded, ABC, Generic[Example_co]):
    """Base of sources with a fixed order and an unknown number of examples, such as a streamed dataset.

    Attributes:
        concept_names: Names of the concepts, in the order of their labels; empty for unlabeled examples.
    """

    concept_names: list[str]

    @abstractmethod
    def read(self, start: int) -> Iterator[Example_co | UnreadableError]:
        """Yield all examples from index `start` on, and an UnreadableError in place of each that cannot be read."""
