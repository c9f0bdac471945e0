"""What the geometry of the data lets each architecture see, before anything is trained."""

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
    """What was found of one concept."""

    name: str
    n_samples: int
    """Samples to which bounds are fitted, and of which dimensions are estimated."""
    n_held_out: int
    """Samples on which the bounds are reported."""
    share: float
    """Share of all samples."""
    dimension: Dimension
    k: int | None
    """Codes that a TopK needs for its samples: the dimension, and one for the centre; None where it is not known."""
    bounds: dict[str, Estimate]
    """Best held-out F1 that a single latent could reach, by family of receptive fields."""


class Diagnosis(NamedTuple):
    """What the data ask for."""

    concepts: tuple[ConceptGeometry, ...]
    verdicts: tuple[Verdict, ...]
    heterogeneity: Heterogeneity
    """How much the concepts' dimensions differ."""
    recommendation: Recommendation
    found_above: float
    """Best F1 from which a concept counts as found."""
    confidence: float
    """Coverage of all intervals."""
    clustered: bool
    """Whether the concepts are clusters that k-means found, since no sample had a label."""
    notes: tuple[str, ...]
    """What a reader should know."""

    def plain(self) -> dict[str, Any]:
        """The same in JSON's types; null is what is not known."""
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
    """Measure each concept's dimension and how well a latent of each architecture could detect it.

    Bounds are those of latents that live in one SAE (`ReceptiveField.of_one_sae`): TopK's cones share their apex.

    Where no sample has a label, clusters found by k-means take the place of concepts.

    Args:
        x: Samples, float `(n, d_in)`.
        concepts: int64 `(n,)` with -1 for unlabelled, or bool `(n, n_concepts)`.
        names: Names of the concepts; empty for unlabelled data.
        held_out: Other samples with their concepts, on which bounds are reported.
        architectures: Those to compare, in order of preference where nothing else decides.
        n_clusters: Clusters to find where no sample has a label, at least 1.
        found_above: Best F1 from which a concept counts as found, between 0 and 1.
        n_resamples: Resamples of the held-out samples for the bounds' intervals.
        confidence: Coverage of the intervals, between 0 and 1.
        seed: Seed of everything random.

    Raises:
        ValueError: If an argument is out of range, or shapes do not fit.
    """
    names, notes = list(names), []
    _check(x, concepts, names, held_out, architectures, found_above)
    clustered = not _any_label(concepts)
    if clustered:
        found = cluster(x, n_clusters, seed)
        names, concepts, held_out = found.names, found.of(x), (held_out[0], found.of(held_out[0]))
        notes.append(
            "No sample has a label: the concepts below are clusters that k-means found. They are convex by "
            "construction, so that the bound of convex cells is high whatever the data; dimensions mean what they say."
        )
        if len(names) < n_clusters:
            notes.append(f"Only {len(names)} different clusters were found, although {n_clusters} were asked for.")
    architectures = [a._replace(field=a.field and a.field.of_one_sae) for a in architectures]
    fields = list(dict.fromkeys(a.field for a in architectures if a.field is not None))
    unknown = [a.name for a in architectures if a.field is None]
    if unknown:
        notes.append(f"No bound for {', '.join(unknown)}: the receptive fields of such latents are not known.")
    if _nothing_to_tell_apart(concepts, len(names)):
        notes.append("No bounds: there is one concept, and no other labelled samples that it could be told from.")
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
    """Latents that each sample with a concept of known dimension needs, for all its concepts together.

    At most `d_in + 1`: concepts may share directions, and a sample has no more.
    """
    sums = torch.zeros(len(concepts), dtype=torch.int64, device=concepts.device)
    for concept, n in enumerate(needed):
        sums += (n or 0) * members(concepts, concept)
    found: list[int] = sums[sums > 0].clamp_max(d_in + 1).tolist()
    return found


def _labels(fields: Sequence[ReceptiveField], architectures: Sequence[Architecture]) -> dict[ReceptiveField, str]:
    """A name for each family; where several share one, with the architecture that brought it."""
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
    """Whether all samples that count belong to one concept."""
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
                f"{what} must hold samples, floating-point (n, d_in), as many features in both, but has shape "
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
