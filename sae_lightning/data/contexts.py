"""Where an activation comes from, as a person reads it."""

from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from PIL.Image import Image

    from sae_lightning.data.datamodule import Split


class TextContext(NamedTuple):
    """A token in its text; no token where the activation is that of the whole text."""

    before: str
    """The text before it."""
    token: str
    """The token or word, empty for the whole text."""
    after: str
    """The text behind it."""


class ImageContext(NamedTuple):
    """A patch in its image."""

    image: "Image"
    """The image."""
    box: tuple[float, float, float, float] | None
    """Left, top, right and bottom edge of the patch as shares of width and height; None for the whole image."""


Context = TextContext | ImageContext


@runtime_checkable
class HasContexts(Protocol):
    """Data that know where their activations come from."""

    def contexts(self, split: "Split", positions: list[int]) -> list[Context]:
        """Where the activations at these positions of a held-out split (in stored order) come from."""
