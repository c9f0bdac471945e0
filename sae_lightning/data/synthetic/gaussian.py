"""Gaussian concepts: the samplers behind the toy data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_lightning.data.batch import ActivationBatch


@dataclass(frozen=True, eq=False)
class GaussianConcepts:
    r"""Gaussian concepts, $x = c_j + R_j (\sigma_j \odot \epsilon)$ with $\epsilon \sim N(0, I)$.

    Sampling costs about one pass of normal numbers; rotations cost one product `[d_in, d_in]` per concept besides.
    """

    centres: Tensor
    """Mean of each concept, `(n_concepts, d_in)`."""
    std: Tensor
    """Standard deviation of each concept along each of its axes, `(n_concepts, d_in)`."""
    rotations: Tensor | None = None
    """What turns each concept's axes, `(n_concepts, d_in, d_in)`; None leaves them where they are."""
    frequencies: Tensor | None = None
    """How often each concept occurs, up to a factor, `(n_concepts,)`; None: equally often."""

    def points(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one point per label.

        Args:
            labels: Concepts, int64 `(n,)`.
            generator: Source of randomness.

        Returns:
            Points `(n, d_in)`.
        """
        noise = torch.randn(len(labels), self.centres.shape[1], generator=generator)
        # index_select is several times as fast as centres[labels]
        points, std = self.centres.index_select(0, labels), self.std.index_select(0, labels)
        if self.rotations is None:
            return points.addcmul_(noise, std)
        noise.mul_(std)
        for concept, (centre, rotation) in enumerate(zip(self.centres, self.rotations, strict=True)):
            rows = (labels == concept).nonzero().flatten()
            points.index_copy_(0, rows, torch.addmm(centre, noise.index_select(0, rows), rotation.T))
        return points

    def batch(self, n: int, generator: torch.Generator) -> ActivationBatch:
        """Draw `n` points of random concepts, in random order."""
        if self.frequencies is None:
            labels = torch.randint(len(self.centres), (n,), generator=generator)
        else:
            labels = torch.multinomial(self.frequencies, n, replacement=True, generator=generator)
        return ActivationBatch(self.points(labels, generator), labels)

    def of_each(self, n_per_concept: int, generator: torch.Generator) -> ActivationBatch:
        """Draw equally many points of every concept, ordered by concept."""
        labels = torch.arange(len(self.centres)).repeat_interleave(n_per_concept)
        return ActivationBatch(self.points(labels, generator), labels)


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
    drawn = GaussianConcepts(centres, std).of_each(n_per_concept, generator)
    return drawn.activations, drawn.concepts


def random_rotations(n: int, d_in: int, generator: torch.Generator) -> Tensor:
    """Draw rotations, all equally likely (Haar measure on SO(d_in)), float64 `(n, d_in, d_in)`.

    Source: Mezzadri (2007), How to generate random matrices from the classical compact groups, arXiv math-ph/0609050.
    """
    q: Tensor
    q, r = torch.linalg.qr(torch.randn(n, d_in, d_in, generator=generator, dtype=torch.float64))
    q *= r.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # makes the factorisation unique, and its Q uniform
    q[:, :, 0] *= torch.linalg.det(q).sign()[:, None]  # no reflections
    return q
