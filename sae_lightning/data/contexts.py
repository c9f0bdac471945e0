"""The text or image that an activation was computed from, for display."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from PIL.Image import Image


class TextContext(NamedTuple):
    """A token and the text around it; `token` is empty for activations of a whole text."""

    before: str
    """Text before the token."""
    token: str
    """The token or word, empty for the whole text."""
    after: str
    """Text after the token."""


class ImageContext(NamedTuple):
    """An image and the patch that the activation belongs to."""

    image: "Image"
    """The image."""
    box: tuple[float, float, float, float] | None
    """Left, top, right and bottom edge of the patch as fractions of width and height; None for the whole image."""


Context = TextContext | ImageContext
