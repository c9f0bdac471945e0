"""The paper's separability data: six Gaussian concepts in the plane."""

import math

import torch

from sae_lightning.data.datamodule import ActivationDataModule, Split
from sae_lightning.data.gaussian import sample_gaussian_concepts
from sae_lightning.data.loading import ActivationDataset
from sae_lightning.data.seeding import seeded_generator

_SPLIT_SEEDS: dict[Split, int] = {"train": 0, "val": 1, "test": 2}


class SeparabilityDataModule(ActivationDataModule):
    """Gaussian concepts around a circle, at alternating radii: outer ones are linearly separable, inner ones not.

    Concept i has its centre at angle `360 * i / n_concepts` degrees and radius `radii[i % len(radii)]`. With the
    defaults C0, C2 and C4 lie outside, C1, C3 and C5 inside. Every number is the paper's.

    Args:
        n_concepts: Number of concepts, at least 1.
        radii: Radii of the centres, taken in turn.
        variance: Variance along each axis, in raw units, positive.
        variance_floor: What is added to that variance.
        n_per_concept: Points of each concept in all.
        train_fraction: Share of them that is for training, between 0 and 1.
        n_val_per_concept: Held-out points of each concept for validation.
        n_test_per_concept: Held-out points of each concept for test and prediction.
        batch_size: Training samples per step and process, at least 1.
        eval_batch_size: Samples per step and process in validation, test and prediction, at least 1.
        seed: Seed of the points and their order; None takes the program's seed.

    Raises:
        ValueError: If an argument is out of range, or the held-out points do not suffice.

    Source: Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822, section on separability.
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
        seed: int | None = None,
    ) -> None:
        for name, value in {
            "n_concepts": n_concepts,
            "n_per_concept": n_per_concept,
            "n_val_per_concept": n_val_per_concept,
            "n_test_per_concept": n_test_per_concept,
            "the number of radii": len(radii),
        }.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        if not variance > 0 or not variance_floor >= 0:
            raise ValueError(
                f"variance must be positive and its floor at least 0, but are {variance}, {variance_floor}"
            )
        if not 0 < train_fraction < 1:
            raise ValueError(f"train_fraction must lie between 0 and 1, but is {train_fraction}")
        n_train = int(n_per_concept * train_fraction)
        held_out = n_per_concept - n_train
        if n_train < 1 or n_val_per_concept + n_test_per_concept > held_out:
            raise ValueError(
                f"n_val_per_concept + n_test_per_concept must be at most the {held_out} of {n_per_concept} points per "
                f"concept that train_fraction = {train_fraction} holds out (and leave one for training), "
                f"but is {n_val_per_concept} + {n_test_per_concept}"
            )
        super().__init__(2, [f"C{i}" for i in range(n_concepts)], batch_size, eval_batch_size, seed)
        angles = 2 * math.pi * torch.arange(n_concepts) / n_concepts
        radius = torch.tensor([radii[i % len(radii)] for i in range(n_concepts)])
        self.centres = torch.stack([radius * angles.cos(), radius * angles.sin()], dim=-1)
        self.std = torch.full((n_concepts, 2), math.sqrt(variance + variance_floor))
        self._n: dict[Split, int] = {"train": n_train, "val": n_val_per_concept, "test": n_test_per_concept}

    def make_split(self, split: Split) -> ActivationDataset:
        """Draw one split; the splits are independent draws from the same concepts."""
        generator = seeded_generator(self.seed, _SPLIT_SEEDS[split])
        return ActivationDataset(*sample_gaussian_concepts(self.centres, self.std, self._n[split], generator))
