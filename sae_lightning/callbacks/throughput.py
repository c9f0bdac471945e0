"""How many samples training takes in per second, and the memory that it needs."""

import time
from typing import Any

import lightning.pytorch as pl
import torch

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.modules.run import RunModule


class Throughput(RunCallback):
    """Logs `train/samples_per_second` and, on GPUs, `train/memory_gb` whenever the trainer logs.

    The rate counts the samples of all processes since the last such step, and the time of everything that happened
    since but validation: fetching, logging and checkpoints included. The memory is the largest that torch's tensors had
    at once on this process's GPU since training began, in units of 1e9 bytes; a CPU tells no such number. The device is
    waited for at logged steps only. (Lightning's ThroughputMonitor waits for it after every step, which costs
    throughput, and wants a function that tells a batch's size, for which YAML has no words.)
    """

    def __init__(self) -> None:
        self._since = (0.0, 0)  # time and samples at the last logged step
        self._paused = 0.0
        self._step = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting."""
        self._step = trainer.global_step
        self._mark(pl_module)
        device = pl_module.device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def _mark(self, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, RunModule)
        self._since = time.perf_counter(), pl_module.samples_seen

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log at the steps at which the trainer writes what is logged."""
        assert isinstance(pl_module, RunModule)
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step == self._step:  # gradients are accumulated
            return
        self._step = step
        if not every or step % every:
            return
        device = pl_module.device
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            pl_module.log("train/memory_gb", torch.cuda.max_memory_allocated(device) / 1e9)
        since, seen = self._since
        rate = (pl_module.samples_seen - seen) / (time.perf_counter() - since)
        pl_module.log("train/samples_per_second", rate)
        self._mark(pl_module)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the clock."""
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock again."""
        since, seen = self._since
        self._since = since + time.perf_counter() - self._paused, seen
