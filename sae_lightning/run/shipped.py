"""The files that come with the package: configs, and the grammars beside them."""

from importlib.resources import files
from pathlib import Path

FOLDER = "configs"


def configs_folder() -> Path:
    """The folder of the configs that come with the package."""
    return Path(str(files("sae_lightning"))) / FOLDER


def shipped_path(path: str) -> Path:
    """A file: the one that is named, or where there is none, the one of that name among the configs of the package.

    Args:
        path: A path, such as `mine.yaml`, or that of a shipped file, with `configs/` before it or without.
    """
    given = Path(path)
    if given.exists() or given.is_absolute():
        return given
    inside = configs_folder() / given.relative_to(FOLDER) if given.parts[:1] == (FOLDER,) else configs_folder() / given
    return inside if inside.is_file() else given
