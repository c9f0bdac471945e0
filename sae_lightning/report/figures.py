"""The run's figures, read back from its folder."""

from pathlib import Path

from sae_lightning.report.excerpts import data_uri


def read_figures(folders: dict[str, Path], max_bytes: float) -> list[tuple[str, str]]:
    """Captions and addresses of the PNG files in folders, as long as there is room for them.

    Args:
        folders: Folders by what their captions start with, such as the name of an SAE; empty for nothing.
        max_bytes: How much room they may take on the page.
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
