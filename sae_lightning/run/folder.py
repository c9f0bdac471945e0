"""A run's folder: who writes to it, and whether it may be replaced."""

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
except ImportError:  # not a POSIX system: there runs are not kept apart
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
ASIDE = ".replaced"
NONFINITE = "nonfinite-"
"""How the name of a file begins that holds the batch by which a run ended."""
_FIRST_FILES = {LOCK, PROBE, *(temporary_of(Path(name)).name for name in (PROBE, "config.yaml"))}
_FIRST_BEGINNINGS = ("events.out.tfevents.", NONFINITE)


class RunFolder(pl.Callback):
    """Tells callbacks the folder of a run of the command line, whatever its loggers.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path


class RunLock:
    """Keeps a second process out of a run's folder for as long as the first one lives.

    The lock is the operating system's (flock on a hidden file), so that a process that is killed leaves none behind.
    The file names the process that holds it, and is removed on release.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor: int | None = None
        self._made = False
        _LOCKS.add(self)

    def acquire(self) -> None:
        """Take the lock, making the folder where it does not exist.

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
            os.close(descriptor)  # its holder has removed the file meanwhile
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
        """Give the lock back; a folder that was made for it and is empty still is removed."""
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                self.path.unlink()
                if self._made:
                    self.path.parent.rmdir()
            self.forget()

    def forget(self) -> None:
        """Close the file without removing it, as a forked process does: its parent holds the lock."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


_LOCKS: "weakref.WeakSet[RunLock]" = weakref.WeakSet()


def _forget_all() -> None:
    for lock in _LOCKS:
        lock.forget()


if hasattr(os, "register_at_fork"):  # else a worker that outlives its parent would hold the lock
    os.register_at_fork(after_in_child=_forget_all)


def may_replace(folder: Path) -> bool:
    """Whether a folder holds an earlier run, or what one leaves that was killed at its start."""
    files = [path for path in folder.rglob("*") if path.is_file() and ASIDE not in path.parts]
    configs = (folder / "config.yaml", folder / ASIDE / "config.yaml")
    first = (path.name in _FIRST_FILES or path.name.startswith(_FIRST_BEGINNINGS) for path in files)
    return any(path.is_file() for path in configs) or all(first)


def is_unused(folder: Path) -> bool:
    """Whether a folder holds no file; a kill may leave empty folders and a lock."""
    return not any(path.is_file() and path.name != LOCK for path in folder.rglob("*"))


class Replacement:
    """Sets an earlier run aside until its successor has begun, so that a run that cannot begin loses nothing.

    Args:
        folder: The run's folder, which this process has locked.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._aside = folder / ASIDE

    def begin(self) -> None:
        """Move all that lies in the folder aside (and delete what an earlier, killed replacement had set aside)."""
        _delete(self._aside)
        found = self._contents()
        if found:
            self._aside.mkdir()
            for path in found:
                path.rename(self._aside / path.name)

    def commit(self) -> None:
        """Delete what was set aside."""
        _delete(self._aside)

    def undo(self) -> None:
        """Delete what came in its place, the batch by which it ended excepted, and move back what was set aside."""
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
