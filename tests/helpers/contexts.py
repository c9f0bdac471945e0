"""Data that know where their activations come from, and short runs on them that look at what latents fire on."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from PIL import Image

from sae_lightning import SpaDE, TensorDataModule
from sae_lightning.data.contexts import Context, ImageContext, TextContext
from sae_lightning.modules import BaseSAE, SAEModule
from sae_lightning.run.loggers import RunTensorBoardLogger
from tests.helpers.trainers import quiet_trainer


class TextData(TensorDataModule):
    """Every position has a text that names it."""

    def contexts(self, split: str, positions: list[int]) -> list[Context]:
        assert split == "test"
        return [TextContext(f"<b>before</b> {p} ", f"token{p}", " after") for p in positions]


class ImageData(TensorDataModule):
    """Every position has a gray image as bright as its label."""

    def contexts(self, split: str, positions: list[int]) -> list[Context]:
        labels = self.split("test").concepts[torch.tensor(positions)].tolist()
        return [ImageContext(Image.new("L", (16, 16), 60 * y + 50), (0.0, 0.25, 0.5, 0.75)) for y in labels]


def make_data(files: Path, kind: type[TensorDataModule] = TextData, labels: bool = True) -> TensorDataModule:
    """The data of the fixture `files`."""
    y = str(files / "y.npy") if labels else None
    return kind(str(files / "x.npy"), y, seed=0, eval_batch_size=16, batch_size=32)


def make_sae(kind: type[BaseSAE] = SpaDE, **arguments: Any) -> BaseSAE:
    """A small SAE for the data."""
    torch.manual_seed(0)
    return kind(d_in=4, d_sae=12, **arguments)


def run(
    module: SAEModule, data: TensorDataModule, folder: Path, *callbacks: pl.Callback, **arguments: Any
) -> pl.Trainer:
    """Train for a few steps, and test with callbacks."""
    quiet_trainer(max_steps=20, limit_val_batches=0).fit(module, datamodule=data)
    logger = RunTensorBoardLogger(str(folder))
    trainer = quiet_trainer(callbacks, logger=logger, **arguments)
    trainer.test(module, datamodule=data, verbose=False)
    logger.finalize("success")
    return trainer
