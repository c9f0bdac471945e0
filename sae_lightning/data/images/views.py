"""Random views (augmentations) of images for contrastive learning."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the usual name)


class ImageBatch(NamedTuple):
    """Images with their classes."""

    images: Tensor
    """uint8 `(n, channels, height, width)`."""
    concepts: Tensor
    """Class of each image, int64 `(n,)`, -1 for none."""


class ViewBatch(NamedTuple):
    """Two random views of each of `n` images."""

    views: Tensor
    """Floats between 0 and 1, `(2n, channels, height, width)`: all first views, then all second views."""
    images: Tensor
    """The original images, floats between 0 and 1, `(n, channels, height, width)`."""
    seed: int
    """Seed for the model's random choices on this batch."""


class RandomViews:
    r"""Draws random views: a crop resized to the full image, possibly mirrored, with random brightness and contrast.

    A crop has a fraction `u` of the area and an aspect ratio `r`, with `u` uniform in `[crop, 1]` and `log r` uniform
    in `[-log 1.25, log 1.25]`. Pixel values `x` become

    $$ \mathrm{clip}_{[0, 1]}\,(m + c\,(b x - m)), \qquad b, c \sim U[1 - \mathrm{jitter}, 1 + \mathrm{jitter}], $$

    with `m` the mean of `b x` over the view.

    Args:
        crop: Minimum fraction of an image's area that a view shows, above 0 and at most 1.
        flip: Probability that a view is mirrored, between 0 and 1.
        jitter: Maximum deviation of the brightness and contrast factors from 1, at least 0 and below 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> from sae_lightning.data.images.views import RandomViews
        >>> images = torch.tensor([[[[0, 255]]]], dtype=torch.uint8)
        >>> RandomViews(crop=1.0, flip=0.0, jitter=0.0).of(images[..., :1], torch.Generator()).flatten()
        tensor([0.])
        >>> RandomViews(crop=0.5, flip=0.5, jitter=0.4).pairs(images, torch.Generator()).views.shape
        torch.Size([2, 1, 1, 2])
    """

    def __init__(self, crop: float, flip: float, jitter: float) -> None:
        if not 0 < crop <= 1:
            raise ValueError(f"crop must lie above 0 and be at most 1, but is {crop}")
        if not 0 <= flip <= 1:
            raise ValueError(f"flip must lie between 0 and 1, but is {flip}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be at least 0 and below 1, but is {jitter}")
        self.crop = crop
        self.flip = flip
        self.jitter = jitter

    def of(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one view of each image.

        Args:
            images: uint8, or floats between 0 and 1, `(n, channels, height, width)`, on the CPU.
            generator: Source of all randomness.

        Returns:
            Floats between 0 and 1, of the same shape.
        """
        x = images if images.is_floating_point() else images / 255
        n = len(x)

        def uniform(low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(n, generator=generator)

        area, ratio = uniform(self.crop, 1), uniform(-math.log(1.25), math.log(1.25)).exp()
        width, height = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
        # center of the crop in coordinates from -1 to 1, such that the crop stays within the image
        across, down = (1 - width) * uniform(-1, 1), (1 - height) * uniform(-1, 1)
        sign = torch.where(uniform(0, 1) < self.flip, -1.0, 1.0)
        zero = torch.zeros(n)
        affine = torch.stack([width * sign, zero, across, zero, height, down], 1).view(n, 2, 3)
        grid = F.affine_grid(affine, list(x.shape), align_corners=False)
        view = F.grid_sample(x, grid, align_corners=False, padding_mode="border")
        view = view * uniform(1 - self.jitter, 1 + self.jitter).view(n, 1, 1, 1)
        mean = view.mean((1, 2, 3), keepdim=True)
        return (mean + uniform(1 - self.jitter, 1 + self.jitter).view(n, 1, 1, 1) * (view - mean)).clamp(0, 1)

    def pairs(self, images: Tensor, generator: torch.Generator) -> ViewBatch:
        """Draw two views of each image.

        Args:
            images: uint8, or floats between 0 and 1, `(n, channels, height, width)`, on the CPU.
            generator: Source of all randomness.
        """
        images = images if images.is_floating_point() else images / 255
        views = self.of(torch.cat([images, images]), generator)
        return ViewBatch(views, images, int(torch.randint(2**62, (), generator=generator)))
