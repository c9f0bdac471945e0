"""The paper's heterogeneity data: five Gaussian concepts of different intrinsic dimension."""

import math
from collections import Counter

import torch
from torch import Tensor

from sae_lightning.data.seeding import seeded_generator
from sae_lightning.data.synthetic.gaussian import GaussianConcepts, random_rotations
from sae_lightning.data.synthetic.toy import GaussianDataModule

_CENTERS, _ROTATIONS = 3, 4  # separates the random streams of the geometry from those of the splits


class HeterogeneityDataModule(GaussianDataModule):
    r"""Gaussian concepts of equal total variance and different intrinsic dimension.

    The center of concept i is uniform in $[0, \text{centre\_scale})$ along every axis. Its variance is
    `variance / dims[i]` along the first `dims[i]` axes, so the subspaces are nested unless `rotate` is set. Centers and
    rotations are drawn from the seed and shared by all splits. All defaults are the paper's. Training batches are
    generated on demand and never repeat.

    Args:
        d_in: Number of features, at least 1.
        dims: Intrinsic dimension of each concept, between 1 and `d_in`. A concept of dimension 6 is named `d6`, or
            `d6_0`, `d6_1`, ... if there are several.
        centre_scale: Upper bound of the centers' coordinates, at least 0.
        variance: Variance of each concept, summed over its subspace, in raw units, positive.
        variance_floor: Variance that is added along every axis.
        anisotropy: Ratio of the variances along the first and the last axis of a subspace, at least 1. The variance
            decreases geometrically between them; its sum does not depend on the ratio.
        rotate: Whether to apply a random rotation to each concept.
        frequencies: Unnormalized frequency of each concept in training; None for equal frequencies. Held-out splits
            hold the same number of points of every concept.
        n_per_concept: Nominal number of points per concept; it sets the length of an epoch and the number of held-out
            points.
        train_fraction: Fraction of `n_per_concept` for training, between 0 and 1.
        n_val_per_concept: Held-out points of each concept for validation.
        n_test_per_concept: Held-out points of each concept for test and prediction.
        batch_size: Training samples per step and process, at least 1.
        eval_batch_size: Samples per step and process in validation, test and prediction, at least 1.
        num_workers: Worker processes that draw training batches ahead; 0 draws them in the training process. A worker
            helps only if a processor core is idle: sending a batch costs about as much as drawing it.
        seed: Seed of centers, rotations and points; None takes the global seed.

    Raises:
        ValueError: If an argument is out of range, or `train_fraction` leaves too few held-out points.

    References:
        Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822, section on heterogeneity.

    Example:
        >>> from sae_lightning import HeterogeneityDataModule
        >>> data = HeterogeneityDataModule(d_in=8, dims=(2, 4), batch_size=3, seed=0)
        >>> data.concept_names, next(iter(data.train_dataloader())).activations.shape
        (['d2', 'd4'], torch.Size([3, 8]))
    """

    def __init__(
        self,
        d_in: int = 128,
        dims: tuple[int, ...] = (6, 14, 30, 62, 126),
        centre_scale: float = 300 / 50 / 128,
        variance: float = 1 / 50,
        variance_floor: float = 1e-6,
        anisotropy: float = 1.0,
        rotate: bool = False,
        frequencies: tuple[float, ...] | None = None,
        n_per_concept: int = 6_400_000,
        train_fraction: float = 0.7,
        n_val_per_concept: int = 1_000,
        n_test_per_concept: int = 1_000,
        batch_size: int = 2_048,
        eval_batch_size: int = 5_000,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        if not dims or not all(1 <= dim <= d_in for dim in dims):
            raise ValueError(f"dims must be dimensions between 1 and d_in = {d_in}, at least one, but are {dims}")
        if not 0 <= centre_scale < math.inf:
            raise ValueError(f"centre_scale must be at least 0 and finite, but is {centre_scale}")
        if not 1 <= anisotropy < math.inf:
            raise ValueError(f"anisotropy must be at least 1 and finite, but is {anisotropy}")
        if frequencies is not None and (
            len(frequencies) != len(dims)
            or not all(0 <= frequency < math.inf for frequency in frequencies)
            or sum(frequencies) == 0
        ):
            raise ValueError(
                f"frequencies must be one number per concept, {len(dims)}, each at least 0 and finite and not all 0, "
                f"but are {frequencies}"
            )
        super().__init__(
            d_in,
            _names(dims),
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
        self.dims = dims
        self.centre_scale = centre_scale
        self.rotate = rotate
        self.frequencies = None if frequencies is None else torch.tensor(frequencies, dtype=torch.float)
        spread = torch.stack([_spread(dim, d_in, anisotropy) for dim in dims])
        self.std = (variance * spread + variance_floor).sqrt().float()

    def concepts(self) -> GaussianConcepts:
        """Return the concepts, computed on each call: the seed may change in `setup`."""
        shape = len(self.dims), self.d_in
        centers = self.centre_scale * torch.rand(shape, generator=seeded_generator(self.seed, _CENTERS))
        rotations = None
        if self.rotate:
            rotations = random_rotations(*shape, seeded_generator(self.seed, _ROTATIONS)).float()
        return GaussianConcepts(centers, self.std, rotations, self.frequencies)


def _names(dims: tuple[int, ...]) -> list[str]:
    total, seen = Counter(dims), Counter[int]()
    names = []
    for dim in dims:
        names.append(f"d{dim}" if total[dim] == 1 else f"d{dim}_{seen[dim]}")
        seen[dim] += 1
    return names


def _spread(dim: int, d_in: int, anisotropy: float) -> Tensor:
    """Fraction of the variance along each axis, float64 `(d_in,)`."""
    shares = torch.zeros(d_in, dtype=torch.float64)
    shares[:dim] = torch.logspace(0, -1, dim, base=anisotropy, dtype=torch.float64)
    return shares / shares.sum()
