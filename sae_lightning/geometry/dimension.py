"""Dimension of a concept by three estimators, and how much dimensions differ between concepts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.geometry.estimate import UNKNOWN, Estimate, deviations
from sae_lightning.geometry.neighbors import neighbor_ratios, two_nn
from sae_lightning.geometry.spectrum import energy_components, participation_ratio

MIN_SAMPLES = 30
"""Least number of samples for an estimate."""
SAMPLES_PER_DIMENSION = 3
"""Least number of samples per estimated dimension."""
VACUOUS = 0.9
"""Fraction of the possible range, 1 to `d_in`, from which on an interval is too wide to be informative."""


class Dimension(NamedTuple):
    r"""Dimension of a concept by three estimators, which answer different questions.

    * The participation ratio counts the directions that share the variance. It equals the dimension of an evenly filled
      subspace. It is smaller if variances differ, and larger if a thin sheet is bent into more directions.
    * The components for 90 and 99 % of the energy count the directions of a linear description, and depend on this
      share. For 99 %, noise with more than a hundredth of the variance is counted in all its directions.
    * The two-nearest-neighbor estimate counts the directions in which neighbors differ, even on a bent sheet, but
      underestimates high dimensions.

    On the heterogeneity data, whose concepts fill their dimensions evenly, 1,000 samples per concept give

    | true dimension         |  6 | 14 | 30 | 62 | 126 |
    | ---------------------- | -- | -- | -- | -- | --- |
    | participation ratio    |  6 | 14 | 30 | 62 | 126 |
    | components for 90 %    |  6 | 13 | 28 | 57 | 114 |
    | two nearest neighbors  |  6 | 12 | 23 | 37 |  56 |

    and components for 99 % within 1 of the true dimension.
    """

    n_samples: int
    """Number of samples of the concept."""
    participation_ratio: Estimate
    components_90: Estimate
    components_99: Estimate
    two_nn: Estimate
    notes: tuple[str, ...] = ()
    """Reasons why numbers are missing."""

    @property
    def headline(self) -> Estimate:
        """The estimate to use if one number is needed: the participation ratio.

        It is the only one without a threshold or scale to choose, and the only one without bias for few samples, so
        concepts of different frequency can be compared. Weak noise hardly changes it.
        """
        return self.participation_ratio


class Heterogeneity(NamedTuple):
    """Differences of a number between concepts; NaN if it is known for fewer than two."""

    ratio: float
    """Largest divided by smallest."""
    variation: float
    """Standard deviation divided by mean."""


def dimension(x: Tensor, n_queries: int = 2_000, confidence: float = 0.95, seed: int = 0) -> Dimension:
    """Estimate the dimension of a concept from its samples, with one copy of them in memory.

    An estimate from n samples needs n to be at least 30 and at least three times the estimate: a spectrum has at most n
    nonzero eigenvalues, so larger estimates would reflect n. An estimate is also discarded if its interval covers at
    least 90 % of the range from 1 to `d_in`, as happens for heavy tails. Discarded estimates are NaN, and a note tells
    why. No estimate exceeds `d_in`.

    Args:
        x: Samples of the concept, float `(n, d_in)`.
        n_queries: Number of random samples whose nearest neighbors are searched, at least `MIN_SAMPLES`.
        confidence: Coverage of the intervals, between 0 and 1.
        seed: Seed for the random order of samples, which determines halves and queries.

    Returns:
        The estimates.

    Raises:
        ValueError: If an argument is out of range, or `x` is not a matrix of finite numbers.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry import dimension
        >>> x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
        >>> round(dimension(x @ torch.eye(3, 8)).headline.value)  # three dimensions in a space of eight
        3
    """
    if x.ndim != 2 or not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor (n, d_in), but has shape {tuple(x.shape)} and {x.dtype}")
    if n_queries < MIN_SAMPLES:
        raise ValueError(f"n_queries must be at least {MIN_SAMPLES}, but is {n_queries}")
    width = deviations(confidence)
    n, d_in = x.shape
    if n < MIN_SAMPLES:
        return _unknown(n, f"{n} samples are fewer than the {MIN_SAMPLES} that any estimate needs")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).to(x.device)
    x = x[order]  # halves and queries are then the first ones
    x = x - x.mean(0, dtype=torch.float64).to(x.dtype)
    scale = x.abs().amax()
    if not bool(scale.isfinite()):
        raise ValueError("x must be finite, but holds NaN or infinite numbers")
    if scale == 0:
        return _unknown(n, "all samples are equal")
    x = (x / scale).float()
    notes: list[str] = []
    components = energy_components(x, (0.9, 0.99), width)
    ratios = neighbor_ratios(x, torch.arange(min(n, n_queries), device=x.device))
    distinct = ratios[ratios.isfinite()]
    if len(distinct) < len(ratios):
        notes.append(
            f"{len(ratios) - len(distinct):,} of {len(ratios):,} samples equal another one, so their nearest-neighbor "
            "distance is zero"
        )
    nearest = two_nn(distinct, width) if len(distinct) >= MIN_SAMPLES else None
    return Dimension(
        n,
        _supported(participation_ratio(x, width), n, d_in, "participation ratio", notes),
        _supported(components[0], n, d_in, "components for 90 % of the energy", notes),
        _supported(components[1], n, d_in, "components for 99 % of the energy", notes),
        _supported(nearest, n, d_in, "two nearest neighbors", notes),
        tuple(notes),
    )


def dimensions(
    x: Tensor, concepts: Tensor, n_concepts: int, n_queries: int = 2_000, confidence: float = 0.95, seed: int = 0
) -> list[Dimension]:
    """Estimate the dimension of each concept.

    Args:
        x: Samples, float `(n, d_in)`.
        concepts: Their concepts, int64 `(n,)` with -1 for unlabeled, or bool `(n, n_concepts)`.
        n_concepts: Number of concepts.
        n_queries: As in `dimension`.
        confidence: As in `dimension`.
        seed: As in `dimension`.

    Returns:
        The estimates, one per concept.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry import dimensions
        >>> x = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0))
        >>> x[:500, 2] = 0.0
        >>> [round(d.headline.value) for d in dimensions(x, torch.arange(1000) // 500, n_concepts=2)]
        [2, 3]
    """
    return [dimension(x[members(concepts, concept)], n_queries, confidence, seed) for concept in range(n_concepts)]


def members(concepts: Tensor, concept: int) -> Tensor:
    """Return which samples belong to a concept, bool `(n,)`, for integer labels or a bool matrix."""
    return concepts[:, concept] if concepts.dtype == torch.bool else concepts == concept


def heterogeneity(values: Sequence[float]) -> Heterogeneity:
    """Measure how much positive numbers differ, ignoring NaN.

    Example:
        >>> from sae_lightning.geometry import heterogeneity
        >>> heterogeneity([2.0, 8.0])
        Heterogeneity(ratio=4.0, variation=0.6)
    """
    known = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    if len(known) < 2:
        return Heterogeneity(math.nan, math.nan)
    return Heterogeneity(float(known.max() / known.min()), float(known.std(correction=0) / known.mean()))


def _unknown(n: int, note: str) -> Dimension:
    return Dimension(n, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, (note,))


def _supported(estimate: Estimate | None, n: int, d_in: int, what: str, notes: list[str]) -> Estimate:
    """Limit an estimate to `d_in`; if the samples do not support it, return `UNKNOWN` and append a note."""
    if estimate is None or not estimate.value > 0:
        notes.append(f"{what}: {n:,} samples do not suffice")
        return UNKNOWN
    estimate = Estimate(*(min(number, float(d_in)) for number in estimate))
    if n < SAMPLES_PER_DIMENSION * estimate.value:
        needed = math.ceil(SAMPLES_PER_DIMENSION * estimate.value)
        notes.append(f"{what}: {n:,} samples are too few, at least {needed:,} are needed")
        return UNKNOWN
    if d_in > 1 and not estimate.high - max(1.0, estimate.low) < VACUOUS * (d_in - 1):
        ends = f"{estimate.low:.3g} to {estimate.high:.3g}"
        notes.append(f"{what}: the interval from {ends} is too wide to be informative, as at most {d_in} are possible")
        return UNKNOWN
    return estimate
