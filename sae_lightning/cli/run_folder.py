"""The folder of a run: which it is, whether it may be used, and who uses it."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only

from sae_lightning import callbacks
from sae_lightning.callbacks.checkpoint_files import newest_checkpoint
from sae_lightning.cli.parser import fail
from sae_lightning.cli.resume import short_name
from sae_lightning.run.files import prepare_folder, remove_leftovers
from sae_lightning.run.folder import Replacement, RunLock, is_unused, may_replace
from sae_lightning.run.loggers import MEMBERS

# launchers whose processes cannot communicate before training, and the variable that says how many
_OUTER_LAUNCHERS = ((TorchElasticEnvironment, "WORLD_SIZE"), (SLURMEnvironment, "SLURM_NTASKS"))
_RUN_DIR_VARIABLE = "SAE_LIGHTNING_RUN_DIR"  # how the first process tells the ones it launches


def is_first_process() -> bool:
    """Whether this is the process of rank zero."""
    return getattr(rank_zero_only, "rank", 0) == 0


def choose_run_dir(config: Any, model: str) -> str:
    """The folder that was given, that of the checkpoint's run, or a new one named by time and model.

    Args:
        config: A command's arguments.
        model: Class path of the model.
    """
    if config.run_dir is not None:
        return str(config.run_dir)
    if not is_first_process() and _RUN_DIR_VARIABLE in os.environ:
        return os.environ[_RUN_DIR_VARIABLE]
    if config.ckpt_path is not None and Path(config.ckpt_path).parent.name == "checkpoints":
        return str(Path(config.ckpt_path).parent.parent)
    if config.trainer.num_nodes > 1 or any(e.detect() and int(os.environ[n]) > 1 for e, n in _OUTER_LAUNCHERS):
        fail(
            "--run_dir must be given where torchrun, SLURM or several nodes start the processes, "
            "for each of them would name a folder by its own clock"
        )
    os.environ[_RUN_DIR_VARIABLE] = str(Path("runs", f"{time.strftime('%Y%m%d-%H%M%S')}-{short_name(model)}"))
    return os.environ[_RUN_DIR_VARIABLE]


class FolderUse:
    """How this process uses the run's folder: checked before anything is built, locked once everything is valid.

    Args:
        command: The command.
        config: Its arguments, with `run_dir`.

    Attributes:
        path: The folder.
        resumes_training: Whether `fit` resumes the run that lies there.
    """

    def __init__(self, command: str, config: Any) -> None:
        self.path = Path(config.run_dir)
        resumed = config.ckpt_path is not None and self.path.resolve() in Path(config.ckpt_path).resolve().parents
        self.resumes_training = command == "fit" and resumed
        self._new = command == "fit" and not resumed
        self._overwrites = config.overwrite
        self._checkpoints = Path(config.checkpoint.dirpath or self.path / "checkpoints")
        self._trains = command == "fit"
        self._writes = not config.trainer.get("fast_dev_run")
        self._replacement: Replacement | None = None
        self._lock: RunLock | None = None
        if self._new and is_first_process():
            self._check()

    def _check(self) -> None:
        """Make sure that the run's folder is new, or an earlier run that may be replaced."""
        if self.path.exists() and not self.path.is_dir():
            fail(f"run_dir must be a folder, but {str(self.path)!r} is a file")
        if is_unused(self.path):
            return
        if not self._overwrites:
            newest = newest_checkpoint(self._checkpoints)
            ways = ["choose another --run_dir", *([f"resume it with --ckpt_path {newest}"] if newest else [])]
            if may_replace(self.path):
                why = "" if newest else " (it has no checkpoint to resume from)"
                ways.append(f"replace it with --overwrite true{why}")
            fail(f"run_dir {str(self.path)!r} exists already: {', or '.join(ways)}")
        if not may_replace(self.path):
            fail(f"run_dir {str(self.path)!r} holds no earlier run (no config.yaml), so it is not deleted")

    def take(self, trainer: Trainer) -> None:
        """Lock the folder, and move a run to be replaced aside; called last, after all other checks."""
        if not self._writes or not is_first_process():
            return
        self._lock = RunLock(self.path)
        self._lock.acquire()
        if self._new:
            self._check()  # another run may have ended here meanwhile
            self._replacement = Replacement(self.path)
            self._replacement.begin()
        try:
            self._prepare_checkpoints(trainer)
        except OSError:
            self.undo()
            raise
        remove_leftovers(self.path)
        for name in ("figures", MEMBERS):
            remove_leftovers(self.path / name, recursive=True)

    def _prepare_checkpoints(self, trainer: Trainer) -> None:
        """See whether the run can write its checkpoints, before anything is written or deleted."""
        if not self._trains or not trainer.is_global_zero:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, callbacks.RunCheckpoint):
                prepare_folder(Path(callback.dirpath or self.path / "checkpoints"), "checkpoints")

    def commit(self) -> None:
        """Delete the replaced run, since training has begun."""
        if self._replacement is not None:
            self._replacement.commit()

    def undo(self) -> None:
        """Restore the run that was to be replaced."""
        if self._replacement is not None:
            self._replacement.undo()

    def release(self) -> None:
        """Let others use the folder."""
        if self._lock is not None:
            self._lock.release()
