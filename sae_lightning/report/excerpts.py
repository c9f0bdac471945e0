"""Contexts of activations, cut to the size of a page: short texts, and thumbnails as addresses."""

import base64
import io
from collections.abc import Callable, Iterable
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from sae_lightning.data.contexts import Context, TextContext

if TYPE_CHECKING:
    from PIL.Image import Image

THUMBNAIL_SIZE: Final = 112  # the longer side, in pixels
_LOSSLESS_UP_TO: Final = 48  # smaller images gain nothing from JPEG, and show its artefacts
_BEFORE, _AFTER = 160, 100  # characters that are kept around a token
_AT_ONCE: Final = 256  # contexts asked for at a time: images may be large


class Text(NamedTuple):
    """A token in its text, or a whole text as `after` alone."""

    before: str
    token: str
    after: str


class Picture(NamedTuple):
    """A patch in its image, or a whole image with no box."""

    uri: str
    """The thumbnail as a `data:` address."""
    box: tuple[float, float, float, float] | None
    """Left, top, right and bottom edge as shares of width and height."""


Excerpt = Text | Picture


def read_excerpts(
    positions: Iterable[int], contexts: Callable[[list[int]], list[Context]], max_bytes: float
) -> tuple[dict[int, Excerpt], int]:
    """Ask for the contexts of samples, a few at a time, until the page has no more room for them.

    Args:
        positions: The samples, the most important first.
        contexts: Where samples come from.
        max_bytes: How much room they may take; an image counts once, however many patches of it there are.

    Returns:
        Excerpts by position, and the bytes that they take.
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
    """Cut a context to what a reader needs."""
    if not isinstance(context, TextContext):
        return Picture(thumbnail(context.image), context.box)
    if not context.token:
        whole = f"{context.before}{context.after}".strip()
        return Text("", "", _shortened(whole, _BEFORE + _AFTER))
    before = _shortened(context.before[::-1], _BEFORE)[::-1]
    return Text(before, context.token[:_BEFORE], _shortened(context.after, _AFTER))


def _shortened(text: str, length: int) -> str:
    """The start of a text, cut between words where that costs little, with an ellipsis."""
    if len(text) <= length:
        return text
    cut = text[:length]
    space = max(cut.rfind(" "), cut.rfind("\n"))
    return (cut[:space] if space > 0.8 * length else cut).rstrip() + " …"


def thumbnail(image: "Image") -> str:
    """A small copy of an image as a `data:` address: PNG where it is tiny, JPEG otherwise; never enlarged."""
    from PIL import Image

    if image.mode in ("1", "L", "I", "F", "I;16"):
        small = image.convert("L")
    elif "A" in image.mode or "transparency" in image.info:
        clear = image.convert("RGBA")
        small = Image.new("RGB", clear.size, "white")
        small.paste(clear, mask=clear.getchannel("A"))
    else:
        small = image.convert("RGB")  # a copy: the data's own image stays as it is
    small.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    file = io.BytesIO()
    if max(small.size) <= _LOSSLESS_UP_TO:
        small.save(file, "PNG", optimize=True)
        return data_uri("image/png", file.getvalue())
    small.save(file, "JPEG", quality=82, optimize=True)
    return data_uri("image/jpeg", file.getvalue())


def data_uri(kind: str, content: bytes) -> str:
    """Bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
