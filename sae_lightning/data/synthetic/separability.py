"""The paper's separability data: six Gaussian concepts in the plane."""

import math

import torch

from sae_lightning.data.synthetic.gaussian import GaussianConcepts
from sae_lightning.data.synthetic.toy import GaussianDataModule


class SeparabilityDataModule(GaussianDataModule):
    """Gaussian concepts in the plane at alternating radii: the outer ones are linearly separable, the inner ones not.

    The center of concept i lies at angle `360 * i / n_concepts` degrees and radius `radii[i % len(radii)]`. By default,
    C0, C2 and C4 are the outer concepts, and C1, C3 and C5 the inner ones. All defaults are the paper's. Training
    batches are generated on demand, with a random concept for each sample, and never repeat.

    Args:
        n_concepts: Number of concepts, at least 1.
        radii: Radii of the centers, used cyclically.
        variance: Variance along each axis, in raw units, positive.
        variance_floor: Variance that is added along each axis.
        n_per_concept: Nominal number of points per concept; it sets the length of an epoch and the number of held-out
            points.
        train_fraction: Fraction of `n_per_concept` for training, between 0 and 1.
        n_val_per_concept: Held-out points of each concept for validation.
        n_test_per_concept: Held-out points of each concept for test and prediction.
        batch_size: Training samples per step and process, at least 1.
        eval_batch_size: Samples per step and process in validation, test and prediction, at least 1.
        num_workers: Worker processes that draw training batches ahead; 0 draws them in the training process, which is
            faster for data this small.
        seed: Seed of the points; None takes the global seed.

    Raises:
        ValueError: If an argument is out of range, or `train_fraction` leaves too few held-out points.

    References:
        Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822, section on separability.

    Example:
        >>> from sae_lightning import SeparabilityDataModule
        >>> data = SeparabilityDataModule(batch_size=4, seed=0)
        >>> next(iter(data.train_dataloader())).activations.shape
        torch.Size([4, 2])
        >>> data.centers.norm(dim=1)
        tensor([1.5000, 0.5000, 1.5000, 0.5000, 1.5000, 0.5000])
    """

    def __init__(
        self,
        n_concepts: int = 6,
        radii: tuple[float, ...] = (1.5, 0.5),
        variance: float = 2**-4.5 / 2,
        variance_floor: float = 1e-6,
        n_per_concept: int = 1_000_000,
        train_fraction: float = 0.7,
        n_val_per_concept: int = 1_000,
        n_test_per_concept: int = 1_000,
        batch_size: int = 512,
        eval_batch_size: int = 6_000,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        for name, value in {"n_concepts": n_concepts, "the number of radii": len(radii)}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        super().__init__(
            2,
            [f"C{i}" for i in range(n_concepts)],
            variance,
            variance_floor,
            n_per_concept,
            train_fraction,
            n_val_per_concept,
            n_test_per_concept,
            batch_size,
            eval_batch_size,
            num_workers,
            seed,
        )
        angles = 2 * math.pi * torch.arange(n_concepts) / n_concepts
        radius = torch.tensor([radii[i % len(radii)] for i in range(n_concepts)])
        self.centers = torch.stack([radius * angles.cos(), radius * angles.sin()], dim=-1)
        self.std = torch.full((n_concepts, 2), math.sqrt(variance + variance_floor))

    def concepts(self) -> GaussianConcepts:
        """Return the concepts; they do not depend on the seed."""
        return GaussianConcepts(self.centers, self.std)
