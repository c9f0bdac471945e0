"""Paths of the files that are installed with the package: configs and grammars."""

from importlib.resources import files
from pathlib import Path

FOLDER = "configs"


def configs_folder() -> Path:
    """Return the folder of the package's configs."""
    return Path(str(files("sae_lightning"))) / FOLDER


def shipped_path(path: str) -> Path:
    """Resolve a path: to itself if it exists, else to the package's config of that name, if there is one.

    Args:
        path: Path of a file, or of one of the package's files relative to its configs, with or without `configs/`.

    Example:
        >>> from sae_lightning.run.shipped import shipped_path
        >>> shipped_path("separability/spade.yaml").is_file()
        True
    """
    given = Path(path)
    if given.exists() or given.is_absolute():
        return given
    inside = configs_folder() / given.relative_to(FOLDER) if given.parts[:1] == (FOLDER,) else configs_folder() / given
    return inside if inside.is_file() else given
