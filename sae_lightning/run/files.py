"""Atomic writes, and reads of text, with errors that name the file or folder and the cause."""

import codecs
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows, where locks are not needed: an open file cannot be removed
    fcntl = None  # type: ignore[assignment]

_TEMPORARY = ".tmp"


PROBE = ".sae_lightning.probe"
"""Temporary file that tests whether a folder is writable."""


class WriteError(OSError):
    """Raised if a write fails; the message names the folder and the cause.

    Args:
        what: What was to be written, such as "checkpoints".
        folder: The folder.
        reason: The original error.
    """

    def __init__(self, what: str, folder: Path, reason: OSError) -> None:
        super().__init__(f"{what} cannot be written to {str(folder)!r}: {reason.strerror or reason}")


class EncodingError(ValueError):
    """Raised if a file is not valid in its encoding; the message names the file and the position."""


def decode_text(data: bytes, name: str, encoding: str = "utf-8", begin: int = 0, line: int = 1) -> str:
    r"""Decode the bytes of a file.

    Args:
        data: The file, or a part of it.
        name: Name of the file in errors.
        encoding: Encoding of the file.
        begin: Offset of the part in the file, in bytes.
        line: Number of the part's first line.

    Raises:
        EncodingError: If the bytes are not valid in this encoding.

    Example:
        >>> from sae_lightning.run.files import decode_text
        >>> decode_text(b"caf\xc3\xa9", "menu.txt")
        'café'
    """
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        wanted, place = codecs.lookup(encoding).name.upper(), begin + error.start
        line += data.count(b"\n", 0, error.start)
        raise EncodingError(f"{name!r} must be {wanted}, but its byte {place} (in line {line}) is not") from None


def read_text(path: str | os.PathLike[str]) -> str:
    r"""Read a UTF-8 text file; line ends are converted to `\n`, and a byte order mark is removed.

    Raises:
        OSError: If the file cannot be read.
        EncodingError: If it is not UTF-8.
    """
    text = decode_text(Path(path).read_bytes(), os.fspath(path))
    return text.removeprefix("\ufeff").replace("\r\n", "\n")


def temporary_of(path: Path) -> Path:
    """Return the hidden temporary file of `path`; its fixed name means that killed runs leave at most one."""
    return path.with_name(f".{path.name}{_TEMPORARY}")


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb", **kwargs: Any) -> Iterator[IO[Any]]:
    """Context manager for atomic writes: the opened file replaces `path` if the block succeeds, and is removed if not.

    The temporary file lies in the same folder, because a rename is atomic only within a file system, and is flushed to
    disk before it is renamed: at any moment, `path` is either the old or the new file. All files of a run are written
    this way, except those that are appended to; a test enforces this.

    Args:
        path: The file to replace or create; its folder must exist.
        mode: Mode of `open`, for writing.
        kwargs: Further arguments of `open`.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sae_lightning.run.files import replacing
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "results.json")
        ...     with replacing(path) as file:
        ...         _ = file.write(b"{}")
        ...         print(path.exists())
        ...     path.exists()
        False
        True
    """
    temporary = temporary_of(path)
    try:
        with open(temporary, mode, **kwargs) as file:
            _lock(file)  # released when the file is closed or the process is killed
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        _discard(temporary)
        raise


def replace_link(link: Path, target: Path) -> None:
    """Point a symbolic link to a file in the same folder, atomically."""
    temporary = temporary_of(link)
    _discard(temporary)
    try:
        os.symlink(target.name, temporary)
        os.replace(temporary, link)
    except BaseException:
        _discard(temporary)
        raise


def remove_leftovers(folder: Path, recursive: bool = False) -> None:
    """Remove the temporary files of killed processes from a folder; files that a live process is writing are kept.

    Args:
        folder: The folder; it need not exist.
        recursive: Whether to include its subfolders.
    """
    pattern = f".*{_TEMPORARY}"
    for path in folder.rglob(pattern) if recursive else folder.glob(pattern):
        with contextlib.suppress(OSError):
            if path.is_symlink():  # links are not locked: they are renamed right after their creation
                path.unlink()
                continue
            with open(path, "r+b") as file:  # network file systems can lock only files that are open for writing
                if _lock(file):
                    path.unlink()


def prepare_folder(folder: Path, what: str) -> None:
    """Create a folder, remove temporary files of killed processes, and check that it is writable.

    Args:
        folder: The folder.
        what: What will be written there, for the message.

    Raises:
        WriteError: If it cannot be created or written, or the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        probe = folder / PROBE
        with replacing(probe) as file:
            file.write(bytes(4096))  # one block, because an empty file fits on a full disk
        probe.unlink()
    except OSError as error:
        raise WriteError(what, folder, error) from error


def _discard(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def _lock(file: IO[Any]) -> bool:
    """Lock a file that is being written; return False if another process holds the lock."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        pass
    return True
