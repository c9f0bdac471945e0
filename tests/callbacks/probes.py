"""What tests hand to the command line by its import path: a damaged stream, and callbacks that look or stop."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from sae_lightning.data import ActivationBatch, ActivationDataModule
from sae_lightning.data.datamodule import Split
from sae_lightning.data.loading import ActivationDataset, BatchIndices, batch_loader


class DamagedStream(ActivationDataModule):
    """Training batches in stored order, of which one holds a NaN.

    Args:
        bad_batch: The batch with the NaN; -1 for none.
        bad_split: The split that it belongs to.
        n_batches: Training batches of 16 samples.
        spread: Whether each process takes its share of the training batches, instead of all.
    """

    def __init__(
        self, bad_batch: int = 14, bad_split: str = "train", n_batches: int = 30, spread: bool = False
    ) -> None:
        super().__init__(3, ["A", "B"], batch_size=16, eval_batch_size=16, seed=0)
        self.bad_batch = bad_batch
        self.bad_split = bad_split
        self.n_batches = n_batches
        self.spread = spread

    def make_split(self, split: Split) -> ActivationDataset:
        x = torch.randn(16 * self.n_batches, 3, generator=torch.Generator().manual_seed(0))
        if split == self.bad_split and self.bad_batch >= 0:
            x[16 * self.bad_batch + 5, 2] = torch.nan
        return ActivationDataset(x, torch.arange(len(x)) % 2)

    def train_dataloader(self) -> DataLoader[ActivationBatch]:
        dataset = self.split("train")
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.spread else (0, 1)
        indices = BatchIndices(len(dataset), 16, rank, world_size, None, drop_last=True)
        return batch_loader(dataset, indices, pin_memory=False)


class SaveRanks(pl.Callback):
    """Saves the weights and counters of every rank after training.

    Args:
        folder: Where to save `rank-<rank>.pt`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        torch.save(pl_module.state_dict(), Path(self.folder, f"rank-{trainer.global_rank}.pt"))


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
