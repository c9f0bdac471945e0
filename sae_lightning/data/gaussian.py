"""Gaussian concepts: the samplers behind the toy data."""

import torch
from torch import Tensor


def sample_gaussian_concepts(
    centres: Tensor, std: Tensor, n_per_concept: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    r"""Draw points from axis-aligned Gaussians, $x = c_j + \sigma_j \odot \epsilon$.

    Args:
        centres: Mean of each concept, `(n_concepts, d_in)`.
        std: Standard deviation of each concept along each axis, `(n_concepts, d_in)`.
        n_per_concept: Points to draw of each concept.
        generator: Source of randomness.

    Returns:
        Points `(n_concepts * n_per_concept, d_in)`, ordered by concept, and their labels, int64.
    """
    n_concepts, d_in = centres.shape
    noise = torch.randn(n_concepts, n_per_concept, d_in, generator=generator)
    points = torch.addcmul(centres[:, None], noise, std[:, None])
    labels = torch.arange(n_concepts).repeat_interleave(n_per_concept)
    return points.flatten(0, 1), labels
