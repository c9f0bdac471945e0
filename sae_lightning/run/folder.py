"""A run's folder: locking it, and replacing an earlier run."""

import contextlib
import os
import shutil
import socket
import weakref
from pathlib import Path

import lightning.pytorch as pl

from sae_lightning.run.files import PROBE, WriteError, temporary_of

try:
    import fcntl
except ImportError:  # not a POSIX system: folders are not locked
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
ASIDE = ".replaced"
NONFINITE = "nonfinite-"
"""Prefix of the files with the nonfinite batch that ended a run."""
_FIRST_FILES = {LOCK, PROBE, *(temporary_of(Path(name)).name for name in (PROBE, "config.yaml"))}
_FIRST_BEGINNINGS = ("events.out.tfevents.", NONFINITE)


class RunFolder(pl.Callback):
    """Callback that tells other callbacks the run's folder on the command line, independent of the loggers.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path


class RunLock:
    """Lock on a run's folder, so that only one process at a time writes to it.

    The lock is the operating system's (flock on a hidden file), so it ends when the process is killed. The file names
    the process that holds the lock, and is removed on release.

    Args:
        folder: The run's folder.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sae_lightning.run.folder import RunLock
        >>> with TemporaryDirectory() as folder:
        ...     lock = RunLock(Path(folder, "run"))
        ...     lock.acquire()
        ...     lock.release()
        ...     Path(folder, "run").exists()  # it was created for the lock only
        False
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor: int | None = None
        self._made = False
        _LOCKS.add(self)

    def acquire(self) -> None:
        """Acquire the lock, and create the folder if it does not exist.

        Raises:
            BlockingIOError: If another process holds it; the message names the process.
            WriteError: If the folder cannot be written.
        """
        if fcntl is None or self._descriptor is not None:
            return
        while True:
            descriptor = self._open()
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
                os.close(descriptor)
                raise BlockingIOError(
                    f"run_dir {str(self.path.parent)!r} is in use by {holder}: wait until it ends, stop it, or choose "
                    "another --run_dir"
                ) from None
            if self._is_ours(descriptor):
                break
            os.close(descriptor)  # the previous holder has removed the file in the meantime
        os.truncate(descriptor, 0)
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        self._descriptor = descriptor

    def _open(self) -> int:
        folder = self.path.parent
        try:
            self._made |= not folder.exists()
            folder.mkdir(parents=True, exist_ok=True)
            return os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise WriteError("the run", folder, error) from error

    def _is_ours(self, descriptor: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.fstat(descriptor).st_ino == os.stat(self.path).st_ino
        return False

    def release(self) -> None:
        """Release the lock, and remove the folder if it was created for the lock and is still empty."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
                if self._made:
                    self.path.parent.rmdir()
            self.forget()

    def forget(self) -> None:
        """Close the file without removing it; for forked processes, whose parent holds the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_LOCKS: "weakref.WeakSet[RunLock]" = weakref.WeakSet()


def _forget_all() -> None:
    for lock in _LOCKS:
        lock.forget()


if hasattr(os, "register_at_fork"):  # otherwise a worker that outlives its parent would keep the lock
    os.register_at_fork(after_in_child=_forget_all)


def may_replace(folder: Path) -> bool:
    """Whether a folder holds an earlier run, or nothing except the remains of one that was killed at its start."""
    files = [path for path in folder.rglob("*") if path.is_file() and ASIDE not in path.parts]
    configs = (folder / "config.yaml", folder / ASIDE / "config.yaml")
    first = (path.name in _FIRST_FILES or path.name.startswith(_FIRST_BEGINNINGS) for path in files)
    return any(path.is_file() for path in configs) or all(first)


def is_unused(folder: Path) -> bool:
    """Whether a folder holds no file except a lock; a killed run may leave empty folders and a lock."""
    return not any(path.is_file() and path.name != LOCK for path in folder.rglob("*"))


class Replacement:
    """Replacement of an earlier run, which is kept until the new run has started, in case the start fails.

    Args:
        folder: The run's folder, which this process has locked.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sae_lightning.run.folder import Replacement
        >>> with TemporaryDirectory() as folder:
        ...     results = Path(folder, "results.json")
        ...     _ = results.write_text("{}")
        ...     replacement = Replacement(Path(folder))
        ...     replacement.begin()
        ...     print(results.exists())
        ...     replacement.undo()
        ...     results.exists()
        False
        True
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._aside = folder / ASIDE

    def begin(self) -> None:
        """Move all files in the folder aside, and delete those that an earlier, killed replacement had moved aside."""
        _delete(self._aside)
        found = self._contents()
        if found:
            self._aside.mkdir()
            for path in found:
                path.rename(self._aside / path.name)

    def commit(self) -> None:
        """Delete the earlier run."""
        _delete(self._aside)

    def undo(self) -> None:
        """Delete the new run, except for its nonfinite batches, and restore the earlier one."""
        kept = {path.name for path in self._contents() if path.name.startswith(NONFINITE)}
        for path in self._contents():
            if path.name not in kept:
                _delete(path)
        if self._aside.is_dir():
            for path in self._aside.iterdir():
                if path.name not in kept:
                    path.rename(self.folder / path.name)
            _delete(self._aside)

    def _contents(self) -> list[Path]:
        return [path for path in self.folder.iterdir() if path.name not in (LOCK, ASIDE)]


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
