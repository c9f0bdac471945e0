"""A small vision transformer, whose activations an SAE can explain."""

import torch
from torch import Tensor, nn

from sae_lightning.nn.parts import require_positive
from sae_lightning.subjects.transformer import Block

_STD = 0.02  # standard deviation of the initial class token and positions
_MEAN, _SCALE = 0.5, 0.25  # approximate mean and standard deviation of pixels in natural images


def standardized(images: Tensor) -> Tensor:
    """Scale pixels to approximately mean 0 and variance 1.

    Args:
        images: uint8, or floats between 0 and 1.

    Example:
        >>> import torch
        >>> from sae_lightning.subjects.vision_transformer import standardized
        >>> standardized(torch.tensor([0.0, 0.5, 1.0]))
        tensor([-2.,  0.,  2.])
    """
    return ((images if images.is_floating_point() else images / 255) - _MEAN) / _SCALE


class PatchEmbedding(nn.Module):
    r"""Embedding of the class token and the patches of images, with learned positions.

    $$ x_0 = c + p_0, \quad x_i = W\, \mathrm{patch}_i + b + p_i $$

    Args:
        image_size: Height and width of an image in pixels; a multiple of `patch_size`.
        channels: Channels of an image, at least 1.
        patch_size: Height and width of a patch in pixels, at least 1.
        width: Size of the residual stream.
    """

    def __init__(self, image_size: int, channels: int, patch_size: int, width: int) -> None:
        super().__init__()
        self.image_size = image_size
        self.channels = channels
        self.patch_size = patch_size
        self.n_patches = (image_size // patch_size) ** 2
        self.project = nn.Linear(channels * patch_size**2, width)
        self.cls = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(1 + self.n_patches, width))

    def patches(self, images: Tensor) -> Tensor:
        """Cut images into patches, row by row.

        Shape:
            `(n, channels, image_size, image_size)` to `(n, n_patches, channels * patch_size**2)`.

        Raises:
            ValueError: If the images have another shape.
        """
        expected = (self.channels, self.image_size, self.image_size)
        if images.ndim != 4 or images.shape[1:] != expected:
            raise ValueError(f"images must have shape (n, {', '.join(map(str, expected))}), not {tuple(images.shape)}")
        side, size = self.image_size // self.patch_size, self.patch_size
        cut = images.reshape(len(images), self.channels, side, size, side, size)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(len(images), self.n_patches, -1)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the residual stream before the first block, `(n, 1 + kept, width)`."""
        patches = self.patches(standardized(images))
        positions = self.positions[1:].expand(len(images), -1, -1)
        if keep is not None:  # select before the projection, to save its cost
            patches = patches.gather(1, keep[..., None].expand(-1, -1, patches.shape[-1]))
            positions = positions.gather(1, keep[..., None].expand(-1, -1, positions.shape[-1]))
        first = (self.cls + self.positions[0]).expand(len(images), 1, -1)
        return torch.cat([first, self.project(patches) + positions], 1)


class VisionTransformer(nn.Module):
    """Encoder-only transformer over the patches of an image: pre-LayerNorm, learned positions, class token.

    Every layer of the residual stream (`embed`, `blocks.0`, ..., `norm`) returns `(n, 1 + n_patches, width)`: the class
    token, then the patches row by row.

    Args:
        image_size: Height and width of an image in pixels; a multiple of `patch_size`.
        channels: Channels of an image, at least 1.
        patch_size: Height and width of a patch in pixels, at least 1.
        width: Size of the residual stream; a multiple of `n_heads`.
        n_layers: Number of blocks, at least 1.
        n_heads: Attention heads per block, at least 1.

    Raises:
        ValueError: If a size is out of range.

    References:
        Dosovitskiy et al. (2021), "An Image is Worth 16x16 Words", arXiv 2010.11929.

    Example:
        >>> import torch
        >>> from sae_lightning.subjects import VisionTransformer
        >>> model = VisionTransformer(image_size=8, patch_size=4, width=16, n_layers=1, n_heads=2)
        >>> model(torch.zeros(2, 1, 8, 8)).shape  # class token and four patches
        torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        image_size: int,
        channels: int = 1,
        patch_size: int = 4,
        width: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
    ) -> None:
        super().__init__()
        sizes = {"image_size": image_size, "channels": channels, "patch_size": patch_size, "width": width}
        for name, value in {**sizes, "n_layers": n_layers, "n_heads": n_heads}.items():
            require_positive(name, value)
        if image_size % patch_size:
            raise ValueError(f"image_size must be a multiple of patch_size = {patch_size}, but is {image_size}")
        if width % n_heads:
            raise ValueError(f"width must be a multiple of n_heads = {n_heads}, but is {width}")
        self.embed = PatchEmbedding(image_size, channels, patch_size, width)
        self.blocks = nn.ModuleList(Block(width, n_heads, causal=False) for _ in range(n_layers))
        self.norm = nn.LayerNorm(width, bias=False)
        self._initialize()

    def _initialize(self) -> None:
        """Initialize weights so that layers keep the scale of their input, and branches are small at the start."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        for block in self.blocks:
            assert isinstance(block, Block)
            for last in (block.attention.from_heads, block.mlp[2]):
                last.weight.data /= (2 * len(self.blocks)) ** 0.5  # the residual stream sums two branches per block
        for parameter in (self.embed.cls, self.embed.positions):
            nn.init.normal_(parameter, std=_STD)

    def forward(self, images: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return the hidden states after the last norm.

        Args:
            images: Floats between 0 and 1, or uint8; `(n, channels, image_size, image_size)`.
            keep: Indices of the patches of each image to process, int64 `(n, kept)`; None for all.

        Returns:
            Hidden states, `(n, 1 + kept, width)`, starting with the class token.

        Raises:
            ValueError: If the images have another shape.
        """
        x = self.embed(images, keep)
        for block in self.blocks:
            x = block(x)
        hidden: Tensor = self.norm(x)
        return hidden
