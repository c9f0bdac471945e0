"""What a source hands to a model: texts and images, with the concepts of their words or of the whole."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from sae_lightning.nn.parts import Recorded

if TYPE_CHECKING:
    from PIL.Image import Image


class TextExample(NamedTuple):
    """A text that a model reads in one piece, such as a sentence."""

    document: str
    """Name of the document that it belongs to: examples of one document fall into one split."""
    text: str
    """What the model reads."""
    spans: tuple[tuple[int, int], ...] = ()
    """Where the words of a labelled text are: first and behind the last character of each, in their order."""
    concepts: tuple[int, ...] = ()
    """Concept of each of these words, -1 for none."""
    concept: int = -1
    """Concept of the text as a whole, -1 for none."""


class ImageExample(NamedTuple):
    """An image."""

    document: str
    """Name of the image: examples of one name fall into one split."""
    image: "Image"
    """The image, in grey or RGB."""
    concept: int = -1
    """Concept of the image, -1 for none."""


class UnreadableError(ValueError):
    """An example that cannot be read: names it and the reason."""

    def __init__(self, document: str, reason: str) -> None:
        super().__init__(f"{document!r} cannot be read: {reason}")
        self.document = document
        self.reason = reason


Example_co = TypeVar("Example_co", TextExample, ImageExample, covariant=True)


class Source(Recorded, ABC, Generic[Example_co]):
    """Examples that can be read in any order; a source records how it was made.

    Attributes:
        concept_names: Names of the concepts, in the order of their labels; empty for unlabelled examples.
    """

    concept_names: list[str]

    @abstractmethod
    def __len__(self) -> int:
        """Number of examples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Example_co:
        """One example, the same every time.

        Raises:
            UnreadableError: If it cannot be read.
        """


class StreamedSource(Recorded, ABC, Generic[Example_co]):
    """Examples that come in an order of their own, of unknown number, such as those of a dataset on a hub.

    Attributes:
        concept_names: Names of the concepts, in the order of their labels; empty for unlabelled examples.
    """

    concept_names: list[str]

    @abstractmethod
    def read(self, start: int) -> Iterator[Example_co | UnreadableError]:
        """All examples from number `start` on; one that cannot be read comes as its error."""
