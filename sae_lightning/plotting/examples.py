"""Images on which a latent fires."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from sae_lightning.plotting._checks import check_length
from sae_lightning.plotting._figures import TICK_SIZE, new_figure
from sae_lightning.plotting.colors import INK

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

PER_ROW: Final = 4
_MARK: Final = "#FF3D7F"


def example_images(
    images: "Sequence[Image]",
    boxes: Sequence[tuple[float, float, float, float] | None],
    captions: Sequence[str],
    title: str | None = None,
) -> "Figure":
    """Draw a grid of images, four per row, each with a rectangle around its patch and a caption below it.

    Args:
        images: The images, at least one.
        boxes: For each image, left, top, right and bottom edge of the patch as shares of width and height, or None.
        captions: Caption of each image.
        title: Title of the figure.

    Returns:
        A figure with a single panel, which is drawn faster than one panel per image.

    Raises:
        ValueError: If there is no image, or the number of boxes or captions differs from that of the images.
    """
    from matplotlib.patches import Rectangle

    if not images:
        raise ValueError("`images` must hold at least one image, got none.")
    check_length("boxes", boxes, len(images), "one per image")
    check_length("captions", captions, len(images), "one per image")
    columns, rows = min(PER_ROW, len(images)), -(-len(images) // PER_ROW)
    figure = new_figure(1.5 * columns + 0.4, 1.75 * rows + 0.5, title)
    axes = figure.add_subplot()
    axes.set_axis_off()
    for i, (image, box, caption) in enumerate(zip(images, boxes, captions, strict=True)):
        longer = max(image.size)
        width, height = image.width / longer, image.height / longer
        left, top = 1.08 * (i % PER_ROW) + (1 - width) / 2, 1.25 * (i // PER_ROW) + (1 - height) / 2
        pixels = image.convert("L" if image.mode in ("1", "L") else "RGB")
        axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, extent=(left, left + width, top + height, top))
        if box is not None:
            corner = left + box[0] * width, top + box[1] * height
            size = (box[2] - box[0]) * width, (box[3] - box[1]) * height
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=_MARK, linewidth=1.6))
        center = 1.08 * (i % PER_ROW) + 0.5
        axes.text(center, 1.25 * (i // PER_ROW) + 1.04, caption, ha="center", va="top", fontsize=TICK_SIZE, color=INK)
    axes.set_xlim(0, 1.08 * columns - 0.08)
    axes.set_ylim(1.25 * rows, 0)
    axes.set_aspect("equal")
    return figure
