"""Trainers that write and show nothing, and short trainings by them."""

from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from torch import Tensor

from sae_lightning.data import ActivationDataModule
from sae_lightning.modules import SAEModule
from tests.helpers.data import Clusters
from tests.helpers.modules import make
from tests.helpers.probes import SeenBatches


def quiet_trainer(callbacks: Sequence[pl.Callback] = (), **options: Any) -> pl.Trainer:
    """A Trainer on the CPU that writes and shows only what its callbacks and options do."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "logger": False,
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_model_summary": False,
    }
    return pl.Trainer(callbacks=list(callbacks), **{**quiet, **options})


def make_trainer(max_steps: int, **options: Any) -> pl.Trainer:
    """A quiet Trainer that does not validate."""
    return quiet_trainer(max_steps=max_steps, **{"limit_val_batches": 0, "num_sanity_val_steps": 0, **options})


def fit(module: SAEModule, max_steps: int, data: ActivationDataModule | None = None, **options: Any) -> pl.Trainer:
    """Train on Clusters (or other data)."""
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(max_steps, **options)
    trainer.fit(module, datamodule=data or Clusters(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def train(
    steps: int, source: ActivationDataModule, *callbacks: pl.Callback, **options: Any
) -> tuple[list[Tensor], SAEModule, pl.Trainer]:
    """Train a SpaDE that is initialized from 50 samples; return what it saw, the module and the trainer."""
    watch = SeenBatches()
    module = make("spade", d_in=source.d_in, d_sae=8, n_init_samples=50)
    trainer = fit(module, steps, source, callbacks=[watch, *callbacks], max_epochs=-1, **options)
    assert trainer.global_step == steps
    return watch.seen, module, trainer
