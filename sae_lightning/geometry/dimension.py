"""How many dimensions a concept has, by three ways of counting, and how much that differs between concepts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.geometry.estimate import UNKNOWN, Estimate, deviations
from sae_lightning.geometry.neighbours import neighbour_ratios, two_nn
from sae_lightning.geometry.spectrum import energy_components, participation_ratio

MIN_SAMPLES = 30
"""Fewest samples from which a dimension is estimated."""
SAMPLES_PER_DIMENSION = 3
"""Fewest samples per dimension that an estimate counts."""
VACUOUS = 0.9
"""Share of the possible range, 1 to d_in, from which on an interval that covers it says nothing."""


class Dimension(NamedTuple):
    r"""The dimension of a concept, counted in three ways.

    They differ, and none is *the* dimension:

    * the participation ratio counts the directions that share the variance. It equals the dimension of a subspace
      that is filled evenly, and is smaller where variances differ (0.71 of it where they fall geometrically by a factor
      of 10), larger where a thin sheet is bent into more directions;
    * the components for 90 and 99 % of the energy count the directions that a linear description needs. They depend on
      that share: of an even spectrum they are 0.9 and 0.99, and noise of more than a hundredth of the variance, along
      whatever many directions, is counted by the latter;
    * the two-nearest-neighbour estimate counts the directions in which neighbours differ, also on a bent sheet, but
      underestimates high dimensions.

    On the heterogeneity data, whose concepts fill 6, 14, 30, 62 and 126 dimensions evenly, 1,000 samples of each give
    6, 14, 30, 62 and 126 by the participation ratio, the same to within 1 by the components for 99 % of the energy,
    6, 13, 28, 57 and 114 by those for 90 %, and 6, 12, 23, 37 and 56 by two nearest neighbours.
    """

    n_samples: int
    """Samples of the concept."""
    participation_ratio: Estimate
    components_90: Estimate
    components_99: Estimate
    two_nn: Estimate
    notes: tuple[str, ...] = ()
    """Why numbers are missing."""

    @property
    def headline(self) -> Estimate:
        """The one number that stands for the others: the participation ratio.

        It is the only one without a threshold or a scale to choose, and the only one whose bias of few samples is
        removed, so that concepts of different frequency can be compared; and weak noise hardly moves it.
        """
        return self.participation_ratio


class Heterogeneity(NamedTuple):
    """How much a number differs between concepts; NaN where fewer than two are known."""

    ratio: float
    """The largest over the smallest."""
    variation: float
    """Standard deviation over mean."""


def dimension(x: Tensor, n_queries: int = 2_000, confidence: float = 0.95, seed: int = 0) -> Dimension:
    """Estimate the dimension of a concept from its samples, of which it holds one copy.

    An estimate from n samples is given where n is at least 30 and at least three times the estimate itself, since a
    spectrum that is cut short by the number of samples says how many they are; otherwise it is NaN, and a note says so.
    No estimate exceeds `d_in`. An estimate whose interval covers at least 90 % of the range from 1 to `d_in` says
    nothing, and is NaN too: heavy tails give such intervals.

    Args:
        x: Samples of the concept, float `(n, d_in)`.
        n_queries: Samples, drawn at random, whose neighbours among all are found, at least `MIN_SAMPLES`.
        confidence: Coverage of the intervals, between 0 and 1.
        seed: Seed of which samples form the halves and are asked for their neighbours.

    Raises:
        ValueError: If an argument is out of range, or `x` is no matrix of finite numbers.
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
        return _unknown(n, "all samples are equal, so that there is nothing to count")
    x = (x / scale).float()
    notes: list[str] = []
    components = energy_components(x, (0.9, 0.99), width)
    ratios = neighbour_ratios(x, torch.arange(min(n, n_queries), device=x.device))
    distinct = ratios[ratios.isfinite()]
    if len(distinct) < len(ratios):
        notes.append(
            f"{len(ratios) - len(distinct):,} of {len(ratios):,} samples have an equal, and no nearest neighbour"
        )
    neighbours = two_nn(distinct, width) if len(distinct) >= MIN_SAMPLES else None
    return Dimension(
        n,
        _supported(participation_ratio(x, width), n, d_in, "participation ratio", notes),
        _supported(components[0], n, d_in, "components for 90 % of the energy", notes),
        _supported(components[1], n, d_in, "components for 99 % of the energy", notes),
        _supported(neighbours, n, d_in, "two nearest neighbours", notes),
        tuple(notes),
    )


def dimensions(
    x: Tensor, concepts: Tensor, n_concepts: int, n_queries: int = 2_000, confidence: float = 0.95, seed: int = 0
) -> list[Dimension]:
    """Estimate the dimension of every concept.

    Args:
        x: Samples, float `(n, d_in)`.
        concepts: int64 `(n,)` with -1 for unlabelled, or bool `(n, n_concepts)`.
        n_concepts: Number of concepts.
        n_queries: As in `dimension`.
        confidence: As in `dimension`.
        seed: As in `dimension`.
    """
    return [dimension(x[members(concepts, concept)], n_queries, confidence, seed) for concept in range(n_concepts)]


def members(concepts: Tensor, concept: int) -> Tensor:
    """Which samples belong to a concept, bool `(n,)`, for both ways of labelling."""
    return concepts[:, concept] if concepts.dtype == torch.bool else concepts == concept


def heterogeneity(values: Sequence[float]) -> Heterogeneity:
    """How much positive numbers differ; NaNs are left out."""
    known = torch.tensor([value for value in values if not math.isnan(value)], dtype=torch.float64)
    if len(known) < 2:
        return Heterogeneity(math.nan, math.nan)
    return Heterogeneity(float(known.max() / known.min()), float(known.std(correction=0) / known.mean()))


def _unknown(n: int, note: str) -> Dimension:
    return Dimension(n, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN, (note,))


def _supported(estimate: Estimate | None, n: int, d_in: int, what: str, notes: list[str]) -> Estimate:
    """The estimate, at most `d_in`, if the samples suffice for it; otherwise none, and a note."""
    if estimate is None or not estimate.value > 0:
        notes.append(f"{what}: {n:,} samples do not suffice")
        return UNKNOWN
    estimate = Estimate(*(min(number, float(d_in)) for number in estimate))
    if n < SAMPLES_PER_DIMENSION * estimate.value:
        needed = math.ceil(SAMPLES_PER_DIMENSION * estimate.value)
        notes.append(f"{what}: {n:,} samples are too few, it would take {needed:,} or more")
        return UNKNOWN
    if d_in > 1 and not estimate.high - max(1.0, estimate.low) < VACUOUS * (d_in - 1):
        ends = f"{estimate.low:.3g} to {estimate.high:.3g}"
        notes.append(f"{what}: the interval from {ends} says nothing where at most {d_in} are possible")
        return UNKNOWN
    return estimate
