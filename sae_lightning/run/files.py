"""Atomic writes and reads of text, with errors that name a file or folder and what is wrong with it."""

import codecs
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows, where a file that is open cannot be removed
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".tmp"


PROBE = ".sae_lightning.probe"
"""A file that is written to see whether a folder takes one."""


class WriteError(OSError):
    """Something could not be written: names the folder and the reason."""

    def __init__(self, what: str, folder: Path, reason: OSError) -> None:
        super().__init__(f"{what} cannot be written to {str(folder)!r}: {reason.strerror or reason}")


class EncodingError(ValueError):
    """Bytes of a file that are no text in its encoding: names the file and the place."""


def decode_text(data: bytes, name: str, encoding: str = "utf-8", begin: int = 0, line: int = 1) -> str:
    """The text that bytes of a file stand for.

    Args:
        data: The file, or a part of it.
        name: What the error calls the file.
        encoding: Encoding of the file.
        begin: Bytes of the file in front of the part.
        line: Number of the part's first line.

    Raises:
        EncodingError: If the bytes are no text in this encoding.
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        wanted, place = codecs.lookup(encoding).name.upper(), begin + error.start
        line += data.count(b"\n", 0, error.start)
        raise EncodingError(f"{name!r} must be {wanted}, but its byte {place} (in line {line}) is not") from None


def read_text(path: str | os.PathLike[str]) -> str:
    r"""The text of a file in UTF-8, with `\n` at the end of each line and without a mark of the byte order in front.

    Raises:
        OSError: If the file cannot be read.
        EncodingError: If it is not UTF-8.
    """
    text = decode_text(Path(path).read_bytes(), os.fspath(path))
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def temporary_of(path: Path) -> Path:
    """The hidden file beside `path` that is written first; always the same, so that kills leave one at most."""
    return path.with_name(f".{path.name}{_TEMPORARY}")


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb", **kwargs: Any) -> Iterator[IO[Any]]:
    """Open a file that takes the place of `path` at once when the block ends, and vanishes if the block fails.

    It lies in the same folder, since only within a file system is a file renamed in one step, and is on the disk
    before it gets its name: at any moment `path` is the old file or the new one. Everything that a run writes goes
    through here, except what appends to a file; a test holds that.

    Args:
        path: The file to replace or make; its folder must exist.
        mode: Mode to open it with, one that writes.
        kwargs: Passed on to `open`.
    """
    temporary = temporary_of(path)
    try:
        with open(temporary, mode, **kwargs) as file:
            _lock(file)  # held until the file is closed, also by a kill
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        _discard(temporary)
        raise


def replace_link(link: Path, target: Path) -> None:
    """Point a symbolic link at a file in the same folder, in one step: it never points to nothing in between."""
    temporary = temporary_of(link)
    _discard(temporary)
    try:
        os.symlink(target.name, temporary)
        os.replace(temporary, link)
    except BaseException:
        _discard(temporary)
        raise


def remove_leftovers(folder: Path, recursive: bool = False) -> None:
    """Remove temporary files that a kill left in a folder; those that a live process is writing stay.

    Args:
        folder: The folder; it need not exist.
        recursive: Whether to look in its folders too.
    """
    pattern = f".*{_TEMPORARY}"
    for path in folder.rglob(pattern) if recursive else folder.glob(pattern):
        with contextlib.suppress(OSError):
            if path.is_symlink():  # renamed as soon as it is made
                path.unlink()
                continue
            with open(path, "r+b") as file:  # network file systems lock only what is open for writing
                if _lock(file):
                    path.unlink()


def prepare_folder(folder: Path, what: str) -> None:
    """Make a folder, remove what a kill left unfinished in it, and see whether it takes a file.

    Args:
        folder: The folder.
        what: What will be written there, for the message.

    Raises:
        WriteError: If it cannot be made or written, or is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        probe = folder / PROBE
        with replacing(probe) as file:
            file.write(bytes(4096))  # a block: an empty file finds room also on a full disk
        probe.unlink()
    except OSError as error:
        raise WriteError(what, folder, error) from error


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _lock(file: IO[Any]) -> bool:
    """Mark a file as being written; False where another process writes it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        pass
    return True
