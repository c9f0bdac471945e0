"""Writing of figures to files."""

from pathlib import Path
from typing import TYPE_CHECKING

from sae_lightning.run.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def save_png(figure: "Figure", path: str | Path, dpi: int = 130) -> Path:
    """Write a figure as PNG on a white background, atomically, and create missing folders.

    Args:
        figure: Any matplotlib figure.
        path: File name ending in `.png`.
        dpi: Pixels per inch.

    Returns:
        The path of the file.

    Raises:
        ValueError: If `path` does not end in `.png`, or `dpi` is not positive.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"`path` must end in '.png', got {str(path)!r}.")
    if dpi <= 0:
        raise ValueError(f"`dpi` must be positive, got {dpi}.")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        figure.savefig(file, dpi=dpi, format="png", facecolor="white")
    return path
