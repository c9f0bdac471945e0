"""What tests hand to a Trainer, or to the command line by its import path: a stream, and callbacks."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from sae_lightning.data import ActivationBatch, ActivationDataModule
from sae_lightning.data.datamodule import Split
from sae_lightning.data.loading import ActivationDataset
from sae_lightning.modules import SAEModule


class DamagedStream(ActivationDataModule):
    """Training batches in stored order, of which one holds a NaN.

    Args:
        bad_batch: The batch with the NaN; -1 for none.
        bad_split: The split that it belongs to.
        n_batches: Training batches of 16 samples.
    """

    def __init__(self, bad_batch: int = 14, bad_split: str = "train", n_batches: int = 30) -> None:
        super().__init__(3, ["A", "B"], batch_size=16, eval_batch_size=16, seed=0)
        self.bad_batch = bad_batch
        self.bad_split = bad_split
        self.n_batches = n_batches

    def make_split(self, split: Split) -> ActivationDataset:
        x = torch.randn(16 * self.n_batches, 3, generator=torch.Generator().manual_seed(0))
        if split == self.bad_split and self.bad_batch >= 0:
            x[16 * self.bad_batch + 5, 2] = torch.nan
        return ActivationDataset(x, torch.arange(len(x)) % 2)

    def train_dataloader(self) -> DataLoader[ActivationBatch]:
        loader = super().train_dataloader()
        loader.sampler.shuffle_seed = None
        return loader


class SaveRanks(pl.Callback):
    """Saves the weights and counters of every SAE on every rank after training.

    Args:
        folder: Where to save `rank-<rank>.pt`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        assert isinstance(pl_module, SAEModule)
        states = {name: sae.state_dict() for name, sae in pl_module.saes().items()}
        torch.save(states, Path(self.folder, f"rank-{trainer.global_rank}.pt"))


class FailAt(pl.Callback):
    """Raises after a training step.

    Args:
        step: Number of steps after which to fail.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("the power went out")


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
