"""The files of a run's checkpoints: how they are written, which is the newest, and what stands in for a damaged one."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from sae_lightning.run.checkpoint import read_checkpoint
from sae_lightning.run.files import WriteError, replacing

WHAT = "checkpoints"
LAST = "last.ckpt"
_STEP = re.compile(r"step=(\d+)\.ckpt")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under a temporary name and renames it: a kill while writing leaves the older one intact.

    (Lightning's own writes to the system's temporary folder, from where a file may have to be copied.) What it reads
    is checked to be an undamaged checkpoint of this project, free of code.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one file.

        Raises:
            WriteError: If the folder does not take it; what was written of it is removed.
        """
        if storage_options is not None or not _is_local(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as file:
                torch.save(checkpoint, file)
        except (OSError, RuntimeError) as error:
            reason = _os_error(error)
            if reason is None:
                raise
            raise WriteError(WHAT, path.parent, reason) from error

    def load_checkpoint(
        self, path: Any, map_location: Any | None = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read one file.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, unsafe to load, or was not made by sae_lightning.
        """
        if not _is_local(path):
            return super().load_checkpoint(path, map_location, weights_only=True)
        try:
            return read_checkpoint(path, map_location)
        except ValueError as error:
            raise ValueError(f"{error}{instead_of(Path(path))}") from error


def _is_local(path: Any) -> bool:
    """Whether a path is one of a file system here, not the address of a store."""
    return not re.search(r"::|://", str(path))


def _os_error(error: BaseException | None) -> OSError | None:
    """The operating system's word among the causes of an error: torch's writer wraps it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def step_of(path: Path) -> int | None:
    """The step in a checkpoint's name, that of a link's target included; None for names of another kind."""
    match = _STEP.fullmatch(Path(os.readlink(path)).name if path.is_symlink() else path.name)
    return int(match[1]) if match else None


def checkpoints_by_step(folder: Path) -> dict[int, Path]:
    """The checkpoints `step=N.ckpt` in a folder, the newest first."""
    found = {int(match[1]): path for path in folder.glob("step=*.ckpt") if (match := _STEP.fullmatch(path.name))}
    return dict(sorted(found.items(), reverse=True))


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint from which to resume after a kill: `last.ckpt`, or the newest of the others; None without one."""
    last = folder / LAST
    return last if last.exists() else next(iter(checkpoints_by_step(folder).values()), None)


def read_older(path: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest readable checkpoint that is older than a damaged one of the same run, with its content.

    Args:
        path: The damaged one, `last.ckpt` or `step=N.ckpt`; None is returned for files of another name.
    """
    step = step_of(path)
    if step is None and path.name != LAST:
        return None
    for older, candidate in checkpoints_by_step(path.parent).items():
        if step is not None and older >= step:
            continue
        try:
            return candidate, read_checkpoint(candidate)
        except (OSError, ValueError):
            continue
    return None


def instead_of(path: Path) -> str:
    """Words for an error about a damaged checkpoint: which older one of the run could be used."""
    found = read_older(path)
    return "" if found is None else f"; an older checkpoint of this run is intact: {str(found[0])!r}"


def described(path: Path) -> str:
    """A checkpoint's name and step, for messages."""
    step = step_of(path)
    return repr(str(path)) if step is None else f"{str(path)!r} (step {step})"
