"""Random views of images: what a model that learns without labels is to recognise as the same."""

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
    """Floats between 0 and 1, `(2n, channels, height, width)`: the second views follow all the first ones."""
    images: Tensor
    """The images themselves, floats between 0 and 1, `(n, channels, height, width)`."""
    seed: int
    """Seed of what a model draws for this batch."""


class RandomViews:
    r"""Draws views: a crop that fills the image again, perhaps mirrored, in other light.

    A crop has a share `u` of the area and a ratio `r` of width to height, with `u` uniform in `[crop, 1]` and `log r`
    uniform in `[-log 1.25, log 1.25]`; pixel values `x` become

    $$ \mathrm{clip}_{[0, 1]}\,(m + c\,(b x - m)), \qquad b, c \sim U[1 - \mathrm{jitter}, 1 + \mathrm{jitter}], $$

    with `m` the mean of `b x` over the view.

    Args:
        crop: Smallest share of an image's area that a view shows, above 0 and at most 1.
        flip: How probable it is that a view is mirrored, between 0 and 1.
        jitter: How far brightness and contrast may be from 1, at least 0 and below 1.

    Raises:
        ValueError: If an argument is out of range.
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
        """One view of each image.

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
        # in coordinates from -1 to 1: the centre lies such that the crop stays within the image
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
        """Two views of each image."""
        images = images if images.is_floating_point() else images / 255
        views = self.of(torch.cat([images, images]), generator)
        return ViewBatch(views, images, int(torch.randint(2**62, (), generator=generator)))
