"""Figures of a run, read from its folder."""

from pathlib import Path

from sae_lightning.report.excerpts import data_uri


def read_figures(folders: dict[str, Path], max_bytes: float) -> list[tuple[str, str]]:
    """Read the PNG files in folders until their size limit is reached.

    Args:
        folders: Folders by the prefix of their captions, such as the name of an SAE, or an empty string.
        max_bytes: Maximum size of all figures on the page.

    Returns:
        Captions and `data:` URIs of the figures.
    """
    found: list[tuple[str, str]] = []
    for name, folder in folders.items():
        for path in sorted(folder.glob("*.png")):
            uri = data_uri("image/png", path.read_bytes())
            max_bytes -= len(uri)
            if max_bytes < 0:
                return found
            caption = path.stem.replace("_", " ")
            found.append((f"{name}: {caption}" if name else caption, uri))
    return found
