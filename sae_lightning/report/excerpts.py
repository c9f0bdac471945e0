"""Excerpts of the contexts of activations: short texts, and thumbnails as `data:` URIs."""

import base64
import io
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from sae_lightning.data.contexts import Context, TextContext

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_SIZE: Final = 112  # the longer side, in pixels
_LOSSLESS_UP_TO: Final = 48  # JPEG saves no space on smaller images and adds artifacts
_BEFORE, _AFTER = 160, 100  # characters kept around a token
_AT_ONCE: Final = 256  # contexts read at a time, because images may be large


class Text(NamedTuple):
    """A token in its text, or a whole text in `after`."""

    before: str
    token: str
    after: str


class Picture(NamedTuple):
    """A patch in its image, or a whole image without box."""

    uri: str
    """The thumbnail as a `data:` URI."""
    box: tuple[float, float, float, float] | None
    """Left, top, right and bottom edge of the patch as shares of width and height."""


Excerpt = Text | Picture


def read_excerpts(
    positions: Iterable[int], contexts: Callable[[list[int]], list[Context]], max_bytes: float
) -> tuple[dict[int, Excerpt], int]:
    """Read the excerpts of samples until their size limit is reached.

    Args:
        positions: Positions of the samples, most important first.
        contexts: Function that returns the contexts of a list of positions.
        max_bytes: Maximum size of all excerpts; an image with several patches counts once.

    Returns:
        Excerpts by position, and their size in bytes.
    """
    found: dict[int, Excerpt] = {}
    seen: set[str] = set()
    size = 0
    waiting = iter(dict.fromkeys(positions))
    while chunk := sorted(islice(waiting, _AT_ONCE)):
        for position, context in zip(chunk, contexts(chunk), strict=True):
            excerpt = make_excerpt(context)
            if isinstance(excerpt, Picture):
                needed = 40 + (0 if excerpt.uri in seen else len(excerpt.uri))
                seen.add(excerpt.uri)
            else:
                needed = sum(len(part.encode()) for part in excerpt)
            if size + needed > max_bytes:
                return found, size
            found[position] = excerpt
            size += needed
    return found, size


def make_excerpt(context: Context) -> Excerpt:
    """Shorten a context to the size of a page.

    Args:
        context: Text with its token, or image with its patch.

    Returns:
        The token with the text around it, or a thumbnail of the image.

    Example:
        >>> from sae_lightning.data.contexts import TextContext
        >>> from sae_lightning.report import make_excerpt
        >>> make_excerpt(TextContext("the ", "cat", " sat"))
        Text(before='the ', token='cat', after=' sat')
    """
    if not isinstance(context, TextContext):
        return Picture(thumbnail(context.image), context.box)
    if not context.token:
        whole = f"{context.before}{context.after}".strip()
        return Text("", "", _shortened(whole, _BEFORE + _AFTER))
    before = _shortened(context.before[::-1], _BEFORE)[::-1]
    return Text(before, context.token[:_BEFORE], _shortened(context.after, _AFTER))


def _shortened(text: str, length: int) -> str:
    """Cut a text to `length` with an ellipsis, between words unless that removes more than a fifth."""
    if len(text) <= length:
        return text
    cut = text[:length]
    space = max(cut.rfind(" "), cut.rfind("\n"))
    return (cut[:space] if space > 0.8 * length else cut).rstrip() + " …"


def thumbnail(image: "Image") -> str:
    """Encode a thumbnail of an image as a `data:` URI, PNG if it is tiny, else JPEG; small images keep their size."""
    from PIL import Image

    if image.mode in ("1", "L", "I", "F", "I;16"):
        small = image.convert("L")
    elif "A" in image.mode or "transparency" in image.info:
        clear = image.convert("RGBA")
        small = Image.new("RGB", clear.size, "white")
        small.paste(clear, mask=clear.getchannel("A"))
    else:
        small = image.convert("RGB")  # a copy, as `thumbnail` changes images in place
    small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    file = io.BytesIO()
    if max(small.size) <= _LOSSLESS_UP_TO:
        small.save(file, "PNG", optimize=True)
        return data_uri("image/png", file.getvalue())
    small.save(file, "JPEG", quality=82, optimize=True)
    return data_uri("image/jpeg", file.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Encode bytes as a `data:` URI of a MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
