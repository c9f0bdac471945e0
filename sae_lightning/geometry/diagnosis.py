"""Diagnosis: which concepts each architecture can find, from the geometry of the data, before training."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_lightning.geometry.bounds import bounds
from sae_lightning.geometry.clusters import cluster
from sae_lightning.geometry.dimension import Dimension, Heterogeneity, dimensions, heterogeneity, members
from sae_lightning.geometry.estimate import UNKNOWN, Estimate
from sae_lightning.geometry.recommendation import Architecture, Recommendation, Verdict, recommend
from sae_lightning.nn.receptive_fields import ReceptiveField


class ConceptGeometry(NamedTuple):
    """Results for one concept."""

    name: str
    n_samples: int
    """Number of samples to which bounds are fitted, and from which dimensions are estimated."""
    n_held_out: int
    """Number of samples on which bounds are reported."""
    share: float
    """Fraction of all samples."""
    dimension: Dimension
    k: int | None
    """Number of codes that TopK needs for its samples: the dimension, plus one for the center; None if unknown."""
    bounds: dict[str, Estimate]
    """Best held-out F1 that a single latent can reach, by name of the family of receptive fields."""


class Diagnosis(NamedTuple):
    """Results for all concepts and architectures."""

    concepts: tuple[ConceptGeometry, ...]
    verdicts: tuple[Verdict, ...]
    heterogeneity: Heterogeneity
    """Differences between the concepts' dimensions."""
    recommendation: Recommendation
    found_above: float
    """Least F1 with which a concept counts as found."""
    confidence: float
    """Coverage of all intervals."""
    clustered: bool
    """Whether the concepts are clusters found by k-means, because no sample had a label."""
    notes: tuple[str, ...]
    """Caveats to show with the results."""

    def plain(self) -> dict[str, Any]:
        """Return the same as JSON types, with None for unknown numbers."""
        plain: dict[str, Any] = _plain(self)
        return plain


def diagnose(
    x: Tensor,
    concepts: Tensor,
    names: Sequence[str],
    held_out: tuple[Tensor, Tensor],
    architectures: Sequence[Architecture],
    *,
    n_clusters: int = 10,
    found_above: float = 0.9,
    n_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
) -> Diagnosis:
    """Estimate each concept's dimension, bound how well a latent of each architecture can detect it, and recommend one.

    Bounds hold for latents that belong to one SAE (`ReceptiveField.of_one_sae`): the cones of TopK share their apex. If
    no sample has a label, clusters found by k-means replace the concepts.

    Args:
        x: Samples, float `(n, d_in)`.
        concepts: Their concepts, int64 `(n,)` with -1 for unlabeled, or bool `(n, n_concepts)`.
        names: Names of the concepts; empty for unlabeled data.
        held_out: Other samples with their concepts, on which bounds are reported.
        architectures: Architectures to compare; the first is preferred if all else is equal.
        n_clusters: Number of clusters if no sample has a label, at least 1.
        found_above: Least F1 with which a concept counts as found, between 0 and 1.
        n_resamples: Number of bootstrap resamples of the held-out samples for the intervals of bounds.
        confidence: Coverage of the intervals, between 0 and 1.
        seed: Seed of all random numbers.

    Returns:
        The diagnosis.

    Raises:
        ValueError: If an argument is out of range, or shapes do not fit.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry import Architecture, diagnose
        >>> from sae_lightning.nn import HalfSpace
        >>> x = torch.linspace(-1, 1, 101)[:, None]
        >>> concepts = (x > 0.5).long().flatten()
        >>> found = diagnose(x, concepts, ["low", "high"], (x, concepts), [Architecture("ReLU", HalfSpace())])
        >>> found.verdicts[0].shows  # a half-space can cut off either of them
        ('low', 'high')
    """
    names, notes = list(names), []
    _check(x, concepts, names, held_out, architectures, found_above)
    clustered = not _any_label(concepts)
    if clustered:
        found = cluster(x, n_clusters, seed)
        names, concepts, held_out = found.names, found.of(x), (held_out[0], found.of(held_out[0]))
        notes.append(
            "No sample has a label: the concepts below are clusters that k-means found. They are convex by "
            "construction, so the bound of convex cells is high for any data; dimensions are not affected by this."
        )
        if len(names) < n_clusters:
            notes.append(f"Only {len(names)} different clusters were found, although {n_clusters} were requested.")
    architectures = [a._replace(field=a.field and a.field.of_one_sae) for a in architectures]
    fields = list(dict.fromkeys(a.field for a in architectures if a.field is not None))
    unknown = [a.name for a in architectures if a.field is None]
    if unknown:
        notes.append(f"No bound for {', '.join(unknown)}: the receptive fields of such latents are not known.")
    if _nothing_to_tell_apart(concepts, len(names)):
        notes.append("No bounds: there is one concept, and no other labeled samples to distinguish it from.")
        fields = []
    labels = _labels(fields, architectures)
    limits = bounds(x, concepts, len(names), fields, held_out, seed, n_resamples, confidence) if fields else {}
    sizes = dimensions(x, concepts, len(names), confidence=confidence, seed=seed)
    table = tuple(
        ConceptGeometry(
            name,
            size.n_samples,
            int(members(held_out[1], i).sum()),
            size.n_samples / len(x),
            size,
            round(size.headline.value) + 1 if size.headline.known else None,
            {labels[f]: Estimate(*(float(v[i]) for v in (b.f1, b.low, b.high))) for f, b in limits.items()},
        )
        for i, (name, size) in enumerate(zip(names, sizes, strict=True))
    )
    differences = heterogeneity([concept.dimension.headline.value for concept in table])
    verdicts = tuple(_verdict(a, labels, table, found_above) for a in architectures)
    needed = [concept.k for concept in table]
    recommendation = recommend(
        architectures, verdicts, needed, _needed_by_sample(concepts, needed, x.shape[1]), differences
    )
    return Diagnosis(table, verdicts, differences, recommendation, found_above, confidence, clustered, tuple(notes))


def _verdict(
    architecture: Architecture, labels: dict[ReceptiveField, str], table: Sequence[ConceptGeometry], found_above: float
) -> Verdict:
    field = architecture.field
    family = None if field is None else labels.get(field, field.name)
    bounds_of = {c.name: c.bounds.get(family or "", UNKNOWN) for c in table}
    known = {name: bound for name, bound in bounds_of.items() if bound.known}
    return Verdict(
        architecture.name,
        family,
        None if field is None else field.assumes,
        architecture.k,
        sum(bound.value for bound in known.values()) / len(known) if known else math.nan,
        min(known.values(), default=UNKNOWN),
        tuple(name for name, bound in known.items() if bound.high >= found_above),
        tuple(name for name, bound in known.items() if bound.high < found_above),
    )


def _needed_by_sample(concepts: Tensor, needed: Sequence[int | None], d_in: int) -> list[int]:
    """Return the number of latents that each sample needs for all its concepts of known dimension, if there are any.

    At most `d_in + 1`, since concepts may share directions, and there are no more than `d_in`.
    """
    sums = torch.zeros(len(concepts), dtype=torch.int64, device=concepts.device)
    for concept, n in enumerate(needed):
        sums += (n or 0) * members(concepts, concept)
    found: list[int] = sums[sums > 0].clamp_max(d_in + 1).tolist()
    return found


def _labels(fields: Sequence[ReceptiveField], architectures: Sequence[Architecture]) -> dict[ReceptiveField, str]:
    """Return a unique name for each family, with the name of an architecture if several families share theirs."""
    names = [field.name for field in fields]
    return {
        field: field.name
        if names.count(field.name) == 1
        else f"{field.name} of {next(a.name for a in architectures if a.field == field)}"
        for field in fields
    }


def _any_label(concepts: Tensor) -> bool:
    return bool(concepts.any() if concepts.dtype == torch.bool else (concepts >= 0).any())


def _nothing_to_tell_apart(concepts: Tensor, n_concepts: int) -> bool:
    """Return whether all labeled samples belong to one concept."""
    return n_concepts == 1 and bool(concepts.all() if concepts.dtype == torch.bool else True)


def _check(
    x: Tensor,
    concepts: Tensor,
    names: list[str],
    held_out: tuple[Tensor, Tensor],
    architectures: Sequence[Architecture],
    found_above: float,
) -> None:
    if not 0 <= found_above <= 1:
        raise ValueError(f"found_above must lie between 0 and 1, but is {found_above}")
    kinds = [a.name for a in architectures]
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"architectures must be at least one, each with a name of its own, but are {kinds}")
    if len(set(names)) < len(names):
        raise ValueError(f"names must all differ, but are {names}")
    for what, (points, labels) in {"x": (x, concepts), "held_out": held_out}.items():
        if points.ndim != 2 or not points.is_floating_point() or points.shape[1] != x.shape[-1] or not len(points):
            raise ValueError(
                f"{what} must hold samples, floating-point (n, d_in), with the d_in of x, but has shape "
                f"{tuple(points.shape)} and {points.dtype}"
            )
        fits = (
            labels.shape == (len(points), len(names))
            if labels.dtype == torch.bool
            else labels.shape == points.shape[:1]
        )
        if not fits or labels.is_floating_point():
            raise ValueError(
                f"concepts of {what} must be int64 ({len(points)},) or bool ({len(points)}, {len(names)}), but have "
                f"shape {tuple(labels.shape)} and {labels.dtype}"
            )
        if labels.dtype != torch.bool and (int(labels.amax()) >= len(names) or int(labels.amin()) < -1):
            raise ValueError(
                f"concepts of {what} must lie between -1 and {len(names) - 1}, one per name, but reach from "
                f"{int(labels.amin())} to {int(labels.amax())}"
            )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {key: _plain(part) for key, part in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
