"""Checkpoints of a run."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint


class RunCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoint of a run as `step=N.ckpt`, with `last.ckpt` pointing to it.

    One is written every `every_n_steps` steps and one at the end of training; the older one is removed when the
    newer one is complete.

    Args:
        dirpath: Folder of the checkpoints; the command line takes `checkpoints` in the run's folder.
        every_n_steps: Training steps between two checkpoints, at least 1.

    Raises:
        ValueError: If `every_n_steps` is below 1.
    """

    def __init__(self, dirpath: str | None = None, every_n_steps: int = 1000) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, but is {every_n_steps}")
        super().__init__(
            dirpath=dirpath,
            filename="{step}",
            save_top_k=1,
            save_last="link",
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,
        )

    @property
    def state_key(self) -> str:
        """One key whatever the interval, so that a resumed run knows its older checkpoint."""
        return "RunCheckpoint"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last step, unless it was written just now."""
        if self._last_global_step_saved != trainer.global_step and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            candidates: dict[str, Any] = self._monitor_candidates(trainer)
            # Lightning expects checkpoints from within a batch, before it counts that batch, and counts it when it
            # resumes: here it is counted already, and a resumed run would log its curves one step too late
            loop = trainer.fit_loop.epoch_loop
            loop._batches_that_stepped -= 1
            self._save_topk_checkpoint(trainer, candidates)
            self._save_last_checkpoint(trainer, candidates)
            loop._batches_that_stepped += 1
