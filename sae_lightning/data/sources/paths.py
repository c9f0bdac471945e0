"""Find the files of a source: a single file, the files of a folder, or the matches of a pattern."""

import glob
import os
from typing import NamedTuple


class NamedFile(NamedTuple):
    """A file and its name in documents and errors."""

    name: str
    """Path relative to the folder where the search begins, with `/` as separator."""
    path: str
    """Path to open."""


def find_files(path: str, ending: str) -> list[NamedFile]:
    """Return the files at a path, sorted by name.

    Args:
        path: A file; a folder, which is searched recursively for non-hidden files with the ending; or a pattern with
            `*`, `?`, `[...]`, and `**` for any number of folders.
        ending: Ending of the files in a folder, such as `.txt`.

    Raises:
        ValueError: If there is no file.
    """
    whole = os.path.expanduser(path)
    if os.path.isfile(whole):
        return [NamedFile(os.path.basename(whole), whole)]
    if os.path.isdir(whole):
        start, pattern, wanted = whole, os.path.join(glob.escape(whole), "**", "*" + ending), f"file *{ending}"
    elif glob.has_magic(whole):
        start, pattern, wanted = _fixed_part(whole), whole, "file"
    else:
        raise ValueError(f"path must be a file, a folder or a pattern of files, but there is nothing at {path!r}")
    found = [file for file in glob.glob(pattern, recursive=True) if os.path.isfile(file)]
    if not found:
        raise ValueError(f"path must lead to at least one {wanted}, but there is none at {path!r}")
    names = [os.path.relpath(file, start or ".").replace(os.sep, "/") for file in found]
    return sorted(NamedFile(name, file) for name, file in zip(names, found, strict=True))


def _fixed_part(pattern: str) -> str:
    """Return the folder before a pattern's first wildcard."""
    folder = os.path.dirname(pattern)
    while glob.has_magic(folder):
        folder = os.path.dirname(folder)
    return folder
