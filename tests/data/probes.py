"""What tests of data hand to a Trainer, also by import path on the command line."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from sae_lightning.data import ActivationBatch


class SeenBatches(pl.Callback):
    """Keeps the activations of every training batch.

    Args:
        folder: Where to save `batches-<rank>.pt` after training; None keeps them in memory only.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder
        self.seen: list[torch.Tensor] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: ActivationBatch, batch_idx: int
    ) -> None:
        self.seen.append(batch.activations.clone())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.folder is not None:
            Path(self.folder).mkdir(parents=True, exist_ok=True)
            loader: Any = trainer.train_dataloader
            saved = {"batches": torch.stack(self.seen), "sampler": type(loader.sampler).__name__, "steps": len(loader)}
            torch.save(saved, Path(self.folder, f"batches-{trainer.global_rank}.pt"))


class SaveAt(pl.Callback):
    """Saves a checkpoint within training, after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
