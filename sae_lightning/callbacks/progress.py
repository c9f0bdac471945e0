"""Progress: a bar in a terminal and in notebooks, a line every so often anywhere else."""

import datetime
import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.modules.run import RunModule


class SAEProgressBar(RunCallback, TQDMProgressBar):
    """Lightning's progress bar with loss, l0 and samples per second.

    Where the output is no terminal (a file, a job's log), bars would fill it with control characters: there a line is
    printed every `seconds` instead.

    Args:
        refresh_rate: Steps between two refreshes; 0 switches bars and lines off.
        leave: Whether finished bars stay on the screen.
        seconds: Time between two lines where the output is no terminal, at least 0.

    Raises:
        ValueError: If `seconds` is negative.
    """

    key = "progress"

    def __init__(self, refresh_rate: int = 20, leave: bool = False, seconds: float = 30.0) -> None:
        if not seconds >= 0:
            raise ValueError(f"seconds must be at least 0, but is {seconds}")
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self.seconds = seconds
        self._since: tuple[float, int] | None = None
        self._lines = refresh_rate > 0 and not _shows_bars()
        self._told = 0.0

    @property
    def is_enabled(self) -> bool:
        """Whether bars are drawn."""
        return super().is_enabled and not self._lines

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting samples."""
        super().on_train_start(trainer, pl_module)
        assert isinstance(pl_module, RunModule)
        self._told = time.perf_counter()
        self._since = self._told, pl_module.samples_seen

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Refresh the bar, or print a line where one is due."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        now = time.perf_counter()
        if self._lines and trainer.is_global_zero and now - self._told >= self.seconds:
            self._told = now
            print(self._line(trainer, pl_module), flush=True)

    def _line(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> str:
        assert self._since is not None
        elapsed = datetime.timedelta(seconds=round(time.perf_counter() - self._since[0]))
        last = "" if trainer.max_steps < 0 else f"/{trainer.max_steps}"
        metrics = self.get_metrics(trainer, pl_module)
        shown = (
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in metrics.items()
        )
        return f"epoch {trainer.current_epoch}, step {trainer.global_step}{last} after {elapsed}: {', '.join(shown)}"

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        """What is shown next to steps per second."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        if self._since is not None and trainer.training:
            assert isinstance(pl_module, RunModule)
            start, seen = self._since
            rate = (pl_module.samples_seen - seen) / max(time.perf_counter() - start, 1e-9)
            metrics["samples/s"] = f"{rate:,.0f}"
        return dict(metrics)


def _shows_bars() -> bool:
    """Whether the output can move its cursor: a terminal, or a notebook, where tqdm draws bars of its own."""
    return sys.stdout.isatty() or "ipykernel" in sys.modules
