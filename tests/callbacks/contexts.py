"""Data that know where their activations come from, as the tests of what latents fire on need them."""

import torch
from PIL import Image

from sae_lightning import TensorDataModule
from sae_lightning.data.contexts import Context, ImageContext, TextContext


class TextData(TensorDataModule):
    """Every position has a text that names it."""

    def contexts(self, split: str, positions: list[int]) -> list[Context]:
        assert split == "test"
        return [TextContext(f"<b>before</b> {p} ", f"token{p}", " after") for p in positions]


class ImageData(TensorDataModule):
    """Every position has a grey image as bright as its label."""

    def contexts(self, split: str, positions: list[int]) -> list[Context]:
        labels = self.split("test").concepts[torch.tensor(positions)].tolist()
        return [ImageContext(Image.new("L", (16, 16), 60 * y + 50), (0.0, 0.25, 0.5, 0.75)) for y in labels]
