"""Look up the text or image region that an activation was computed from."""

import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sae_lightning.data.contexts import Context, ImageContext, TextContext
from sae_lightning.data.sources.base import Source, StreamedSource, TextExample, UnreadableError

if TYPE_CHECKING:
    from PIL.Image import Image


def contexts_of(
    source: Source[Any] | StreamedSource[Any], examples: Tensor, starts: Tensor, ends: Tensor, crop: float | None
) -> list[Context]:
    """Return the context of each activation.

    Args:
        source: The examples.
        examples: Index of each activation's example, int64 `(n,)`.
        starts: First character, or index of the patch; -1 for the whole example, int32 `(n,)`.
        ends: One past the last character, or number of patches; -1 for the whole example, int32 `(n,)`.
        crop: Side of the central square that the model saw, as a fraction of the image's shorter side; None if it saw
            the whole image.

    Raises:
        ValueError: If the source lacks one of the examples, or an image one of the patches.
    """
    wanted = set(examples.tolist())
    found = _read(source, wanted)
    missing = wanted - found.keys()
    if missing:
        raise ValueError(f"source must hold the examples that were read, but holds no example {min(missing)}")
    return [
        _context(found[example], start, end, crop)
        for example, start, end in zip(examples.tolist(), starts.tolist(), ends.tolist(), strict=True)
    ]


def _read(source: Source[Any] | StreamedSource[Any], wanted: set[int]) -> dict[int, Any]:
    if isinstance(source, Source):
        return {index: source[index] for index in wanted if 0 <= index < len(source)}
    found: dict[int, Any] = {}
    if wanted and min(wanted) >= 0:
        for index, example in enumerate(source.read(min(wanted)), start=min(wanted)):
            if index in wanted:
                found[index] = example
            if index >= max(wanted):
                break
    return found


def _context(example: Any, start: int, end: int, crop: float | None) -> Context:
    if isinstance(example, UnreadableError):
        raise example
    if isinstance(example, TextExample):
        if start < 0:
            return TextContext(example.text, "", "")
        return TextContext(example.text[:start], example.text[start:end], example.text[end:])
    image = _seen(example.image, crop)
    if start < 0:
        return ImageContext(image, None)
    if start >= end:
        raise ValueError(f"a patch must be one of the {end} of its image, but is number {start}")
    side = math.isqrt(end)
    if side * side != end:  # not a square grid: the position of the patch is unknown
        return ImageContext(image, None)
    row, column = divmod(start, side)
    return ImageContext(image, (column / side, row / side, (column + 1) / side, (row + 1) / side))


def _seen(image: "Image", crop: float | None) -> "Image":
    """Return the part of an image that the model saw."""
    if crop is None:
        return image
    side = crop * min(image.size)
    left, top = ((length - side) / 2 for length in image.size)
    return image.crop((round(left), round(top), round(left + side), round(top + side)))
