"""The progress bar."""

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar

from sae_lightning.modules.run import RunModule


class SAEProgressBar(TQDMProgressBar):
    """Lightning's progress bar with loss, l0 and samples per second.

    Args:
        refresh_rate: Steps between two refreshes; 0 switches the bar off.
        leave: Whether finished bars stay on the screen.
    """

    def __init__(self, refresh_rate: int = 20, leave: bool = False) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self._since: tuple[float, int] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting samples."""
        super().on_train_start(trainer, pl_module)
        assert isinstance(pl_module, RunModule)
        self._since = time.perf_counter(), pl_module.samples_seen

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What the bar shows beside steps per second."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if self._since is not None and trainer.training:
            assert isinstance(pl_module, RunModule)
            start, seen = self._since
            rate = (pl_module.samples_seen - seen) / max(time.perf_counter() - start, 1e-9)
            metrics["samples/s"] = f"{rate:,.0f}"
        return dict(metrics)
