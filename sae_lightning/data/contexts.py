"""Where an activation comes from, as a person reads it."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image


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
