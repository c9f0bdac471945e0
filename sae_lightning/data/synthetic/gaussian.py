"""Gaussian concepts: the samplers of the synthetic data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sae_lightning.data.batch import ActivationBatch


@dataclass(frozen=True, eq=False)
class GaussianConcepts:
    r"""Gaussian concepts, $x = c_j + R_j (\sigma_j \odot \epsilon)$ with $\epsilon \sim N(0, I)$.

    Sampling costs about as much as drawing the normal numbers; each rotation adds one product with a
    `(d_in, d_in)` matrix.

    Example:
        >>> import torch
        >>> from sae_lightning.data.synthetic.gaussian import GaussianConcepts
        >>> concepts = GaussianConcepts(centers=torch.tensor([[0.0], [5.0]]), std=torch.zeros(2, 1))
        >>> concepts.of_each(2, torch.Generator()).activations.flatten()
        tensor([0., 0., 5., 5.])
    """

    centers: Tensor
    """Mean of each concept, `(n_concepts, d_in)`."""
    std: Tensor
    """Standard deviation of each concept along each of its axes, `(n_concepts, d_in)`."""
    rotations: Tensor | None = None
    """Rotation of each concept's axes, `(n_concepts, d_in, d_in)`; None for axis-aligned concepts."""
    frequencies: Tensor | None = None
    """Unnormalized frequency of each concept, `(n_concepts,)`; None for equal frequencies."""

    def points(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw one point per label.

        Args:
            labels: Concepts, int64 `(n,)`.
            generator: Source of randomness.

        Returns:
            Points `(n, d_in)`.
        """
        noise = torch.randn(len(labels), self.centers.shape[1], generator=generator)
        # index_select is several times as fast as centers[labels]
        points, std = self.centers.index_select(0, labels), self.std.index_select(0, labels)
        if self.rotations is None:
            return points.addcmul_(noise, std)
        noise.mul_(std)
        for concept, (center, rotation) in enumerate(zip(self.centers, self.rotations, strict=True)):
            rows = (labels == concept).nonzero().flatten()
            points.index_copy_(0, rows, torch.addmm(center, noise.index_select(0, rows), rotation.T))
        return points

    def batch(self, n: int, generator: torch.Generator) -> ActivationBatch:
        """Draw `n` points, each of a random concept."""
        if self.frequencies is None:
            labels = torch.randint(len(self.centers), (n,), generator=generator)
        else:
            labels = torch.multinomial(self.frequencies, n, replacement=True, generator=generator)
        return ActivationBatch(self.points(labels, generator), labels)

    def of_each(self, n_per_concept: int, generator: torch.Generator) -> ActivationBatch:
        """Draw the same number of points of every concept, ordered by concept."""
        labels = torch.arange(len(self.centers)).repeat_interleave(n_per_concept)
        return ActivationBatch(self.points(labels, generator), labels)


def sample_gaussian_concepts(
    centers: Tensor, std: Tensor, n_per_concept: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    r"""Draw points from axis-aligned Gaussians, $x = c_j + \sigma_j \odot \epsilon$.

    Args:
        centers: Mean of each concept, `(n_concepts, d_in)`.
        std: Standard deviation of each concept along each axis, `(n_concepts, d_in)`.
        n_per_concept: Points to draw of each concept.
        generator: Source of randomness.

    Returns:
        Points `(n_concepts * n_per_concept, d_in)`, ordered by concept, and their labels, int64.

    Example:
        >>> import torch
        >>> from sae_lightning.data.synthetic.gaussian import sample_gaussian_concepts
        >>> x, labels = sample_gaussian_concepts(torch.eye(3), torch.zeros(3, 3), 1, torch.Generator())
        >>> torch.equal(x, torch.eye(3)), labels
        (True, tensor([0, 1, 2]))
    """
    drawn = GaussianConcepts(centers, std).of_each(n_per_concept, generator)
    return drawn.activations, drawn.concepts


def random_rotations(n: int, d_in: int, generator: torch.Generator) -> Tensor:
    """Draw rotations uniformly (Haar measure on SO(d_in)), float64 `(n, d_in, d_in)`.

    References:
        Mezzadri (2007), How to generate random matrices from the classical compact groups, arXiv math-ph/0609050.

    Example:
        >>> import torch
        >>> from sae_lightning.data.synthetic.gaussian import random_rotations
        >>> q = random_rotations(1, 3, torch.Generator().manual_seed(0))[0]
        >>> torch.allclose(q @ q.T, torch.eye(3, dtype=q.dtype)), round(torch.linalg.det(q).item(), 6)
        (True, 1.0)
    """
    q: Tensor
    q, r = torch.linalg.qr(torch.randn(n, d_in, d_in, generator=generator, dtype=torch.float64))
    q *= r.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # makes the factorization unique, and its Q uniform
    q[:, :, 0] *= torch.linalg.det(q).sign()[:, None]  # no reflections
    return q
