"""The share of a training step that goes into fetching its batch, by Lightning's profiler in a real `Trainer.fit`."""

import warnings
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.profilers import SimpleProfiler

from sae_lightning import data
from sae_lightning.modules import SpaDE

_MODULES = ("SeparabilityDataModule", "HeterogeneityDataModule")
_FETCH, _STEP = "[_TrainingEpochLoop].train_dataloader_next", "run_training_batch"


def share_of_fetching(source: pl.LightningDataModule, sae: pl.LightningModule, steps: int) -> dict[str, Any]:
    """Train for some steps; the time of all fetches over that of all steps."""
    profiler = SimpleProfiler()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        profiler=profiler,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        trainer.fit(sae, source)
    durations = profiler.recorded_durations
    fetch, step = sum(durations[_FETCH]), sum(durations[_STEP])
    return {
        "data": type(source).__name__,
        "model": f"{type(sae).__name__}, {sae.d_sae} latents",
        "batch": source.batch_size,
        "steps": len(durations[_STEP]),
        "fetch": fetch / len(durations[_STEP]),
        "step": step / len(durations[_STEP]),
        "share": fetch / step,
    }


def loader_shares(steps: int) -> Iterator[dict[str, Any]]:
    """Train SpaDE on each synthetic data module with its defaults."""
    for name in _MODULES:
        source = getattr(data, name)(seed=0)
        yield share_of_fetching(source, SpaDE(source.d_in, d_sae=128, gamma=1e-3), steps)
