"""Checkpoints of a run, from which it goes on exactly."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from sae_lightning.callbacks.checkpoint_files import WHAT, AtomicCheckpointIO, checkpoints_by_step
from sae_lightning.callbacks.generators import generator_states, restore_generators
from sae_lightning.files import WriteError, prepare_folder, replace_link

_KEY = "sae_lightning_run"


class RunCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoints of a run as `step=N.ckpt`, with `last.ckpt` pointing to the last of them.

    One is written every `every_n_steps` steps and one at the end of training; the oldest is removed when the newest
    is complete. A run that is killed at any moment and resumed from `last.ckpt` goes on as if nothing had happened:
    a checkpoint holds the state at the end of a step, and appears once all that the step logs (its validation
    included) is on disk. The random generators are part of it unless several processes train.

    Args:
        dirpath: Folder of the checkpoints; the command line takes `checkpoints` in the run's folder.
        every_n_steps: Training steps between two checkpoints, at least 1.
        keep: How many are kept, at least 1; a resumed run falls back to an older one where the newest is damaged.

    Raises:
        ValueError: If `every_n_steps` or `keep` is below 1.
        WriteError: At the start of training, if the folder cannot be written; during it, if a checkpoint cannot.
    """

    def __init__(self, dirpath: str | None = None, every_n_steps: int = 1000, keep: int = 2) -> None:
        for name, value in {"every_n_steps": every_n_steps, "keep": keep}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        super().__init__(
            dirpath=dirpath,
            filename="{step}",
            save_top_k=1,
            save_last="link",
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,
        )
        self._keep = keep
        self._taken: tuple[int, dict[str, Any]] | None = None  # a step, and the loops' state at its end
        self._restored: dict[str, Any] = {}

    @property
    def state_key(self) -> str:
        """One key whatever the interval."""
        return "RunCheckpoint"

    def state_dict(self) -> dict[str, Any]:
        """Nothing: which checkpoints there are is seen in the folder, and `on_save_checkpoint` stores the rest."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the paths that older checkpoints hold."""

    # ------------------------------------------------------------------ start

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before training, see whether the folder can be written, and choose how."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        strategy = trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # Lightning's default: what the user chose stays
            strategy.checkpoint_io = AtomicCheckpointIO()
        if trainer.is_global_zero:
            prepare_folder(self._folder, WHAT)

    @property
    def _folder(self) -> Path:
        assert self.dirpath is not None  # settled in `setup`
        return Path(self.dirpath)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what is restored when training starts.

        Raises:
            ValueError: If ranks have read different checkpoints, for which a damaged file may be the reason.
        """
        step = checkpoint.get("global_step")
        first = trainer.strategy.broadcast(step)
        if step != first:
            raise ValueError(
                f"all ranks must go on from one checkpoint, but rank {trainer.global_rank} has read one of step {step} "
                f"and rank 0 one of step {first}: give --ckpt_path the older one by its name"
            )
        self._restored = dict(checkpoint.get(_KEY, {}))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the last values of all metrics: results of a run are those of its last validation."""
        trainer.callback_metrics.update(self._restored.pop("metrics", {}))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Know which step is there already, and whether it ended an epoch."""
        super().on_train_start(trainer, pl_module)
        self._last_global_step_saved = trainer.global_step
        loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress.total
        if loop.restarted_mid_epoch and epochs.completed == epochs.ready:
            # Lightning has counted the epoch as over by now, but would begin the next one as if it had begun before
            loop.reset_restart_stage()

    # ------------------------------------------------------------------ steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take down where training stands, at steps that are due and at the last ones of an epoch and of training."""
        step = trainer.global_step
        if self._is_due(step) or step == trainer.max_steps or trainer.is_last_batch or trainer.should_stop:
            self._take(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take down where training stands, since after a validation other callbacks may end it."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._take(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave saving to the next step's start."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave saving to the next step's start."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save the step before, all of whose curves are logged by now."""
        if "generators" in self._restored:
            restore_generators(self._restored.pop("generators"))
        if self._taken is not None and self._is_due(self._taken[0]):
            self._save(trainer)
        self._taken = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step, unless it is there already."""
        if self._taken is None:  # nobody could know that this step would be the last
            self._take(trainer)
        if self._taken is not None:
            self._save(trainer)
        self._taken = None

    def _is_due(self, step: int) -> bool:
        return step % self._every_n_train_steps == 0

    def _take(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        # with accumulated gradients several batches end at one step: it is saved once, when it was made
        known = self._last_global_step_saved if self._taken is None else self._taken[0]
        if step != known and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._taken = step, trainer.fit_loop.state_dict()

    # ------------------------------------------------------------------ saving

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
        assert self._taken is not None
        step = self._taken[0]
        path, last = (self._folder / f"{name}.ckpt" for name in (f"step={step}", self.CHECKPOINT_NAME_LAST))
        self.best_model_path, self.last_model_path = str(path), str(last)
        self._save_checkpoint(trainer, str(path))
        if trainer.is_global_zero:
            try:
                replace_link(last, path)
                found = checkpoints_by_step(self._folder)
                kept = [other for other in found if other <= step][: self._keep]  # later ones: this run has left them
                for other in found.keys() - set(kept):
                    found[other].unlink()
            except OSError as error:
                raise WriteError(WHAT, self._folder, error) from error
        trainer.strategy.barrier("RunCheckpoint")

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the loops as they were at the end of the step, the last values of metrics, and random generators."""
        if self._taken is None:  # somebody else's checkpoint
            return
        checkpoint["loops"]["fit_loop"] = self._taken[1]
        metrics: dict[str, Tensor] = {key: value.detach().cpu() for key, value in trainer.callback_metrics.items()}
        checkpoint[_KEY] = {"metrics": metrics}
        if trainer.world_size == 1:  # with several each has its own, and one file holds one
            checkpoint[_KEY]["generators"] = generator_states()
