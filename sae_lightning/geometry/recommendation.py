"""Recommendation of architecture, width and sparsity from bounds and dimensions, with reasons in words."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sae_lightning.geometry.dimension import Heterogeneity
from sae_lightning.geometry.estimate import Estimate
from sae_lightning.nn.receptive_fields import ReceptiveField

TOLERANCE = 0.02
"""Differences in F1 up to this are ignored."""
UNEVEN = 2.0
"""Ratio of the largest to the smallest dimension from which on one k does not fit all concepts."""


class Architecture(NamedTuple):
    """Assumptions of an SAE architecture."""

    name: str
    field: ReceptiveField | None
    """Receptive fields of its latents; None if unknown."""
    k: int | None = None
    """Fixed number of codes per sample; None if the number depends on the sample."""


class Verdict(NamedTuple):
    """Which concepts of the data the assumptions of an architecture let it find."""

    name: str
    family: str | None
    """Name of its family of receptive fields; None if unknown, in which case bounds are unknown as well."""
    assumes: str | None
    """Assumption of this family about concepts."""
    k: int | None
    """Fixed number of codes per sample; None if the number depends on the sample."""
    mean_bound: float
    """Mean over concepts of the best F1 that a single latent can reach."""
    min_bound: Estimate
    """Smallest bound of a concept."""
    shows: tuple[str, ...]
    """Concepts that a single latent may find: the interval of the bound reaches `found_above`."""
    hides: tuple[str, ...]
    """Concepts that no single latent can find after any training: the interval of the bound is below `found_above`."""


class Recommendation(NamedTuple):
    """Recommended architecture and sizes; None where the data do not determine them."""

    architecture: str | None
    d_sae: int | None
    k: int | None
    """Number of codes per sample, if the recommended architecture fixes it."""
    l0: float | None
    """Target mean number of firing latents per sample otherwise."""
    reasons: tuple[str, ...]
    """Reasons for the recommendation, as sentences."""


def recommend(
    architectures: Sequence[Architecture],
    verdicts: Sequence[Verdict],
    needed: Sequence[int | None],
    needed_by_sample: Sequence[int],
    heterogeneity: Heterogeneity,
) -> Recommendation:
    """Recommend an architecture, its width and its sparsity by fixed rules.

    Architecture:

    1. Take the architecture with the highest mean bound over concepts, and all others whose mean and smallest bound are
       within 0.02 of its mean and smallest bound. The upper end of the interval is used for the smallest bound, since
       it may be uncertain with few held-out samples. Architectures with unknown receptive fields are ignored.
    2. Discard architectures with a fixed number of codes if others remain. The fixed number is one more assumption, and
       if dimensions differ by a factor of 2 or more it is too small for some concepts or too large for others.
    3. Take the simplest of the rest, that is, one whose receptive fields are special cases of another's. Unneeded
       freedom must be learned, and lets latents split concepts. If none is simpler, take the first one given.

    Numbers:

    4. A sample of a concept needs one latent per dimension of the concept and one for its center. A sample of several
       concepts needs the sum. The recommended k is the maximum over samples, the recommended L0 the mean.
    5. Codes are nonnegative, so each direction takes two latents, one per sign. The recommended width is twice the sum
       over concepts of needed latents, as if concepts shared no latent, rounded up to a power of 2.

    Args:
        architectures: Architectures to choose from; the first is preferred if all else is equal.
        verdicts: Verdict on each architecture.
        needed: Number of latents that a sample of each concept needs; None if its dimension is unknown.
        needed_by_sample: Number of latents that each sample needs, for the samples with a concept of known dimension.
        heterogeneity: Differences between the concepts' dimensions.

    Returns:
        The recommendation with its reasons.

    Example:
        >>> from sae_lightning.geometry import Architecture, Estimate, Verdict, heterogeneity, recommend
        >>> from sae_lightning.nn import HalfSpace
        >>> relu, bound = Architecture("ReLU", HalfSpace()), Estimate(1.0, 0.9, 1.0)
        >>> verdict = Verdict("ReLU", "half-space", HalfSpace().assumes, None, 1.0, bound, ("A", "B"), ())
        >>> found = recommend([relu], [verdict], [3, 5], [3, 3, 3, 5], heterogeneity([2.0, 4.0]))
        >>> found.architecture, found.d_sae, found.l0  # 16 = 2 * (3 + 5), 3.5 = (3 + 3 + 3 + 5) / 4
        ('ReLU', 16, 3.5)
    """
    known = [i for i, verdict in enumerate(verdicts) if not math.isnan(verdict.mean_bound)]
    reasons: list[str] = []
    chosen = None
    if known:
        chosen = architectures[_choose(known, architectures, verdicts, heterogeneity, reasons)]
    else:
        reasons.append("No architecture is recommended, since no bound is known.")
    sizes = [n for n in needed if n is not None]
    if not needed_by_sample:
        reasons.append("Width and sparsity are not recommended, since no concept's dimension is known.")
        return Recommendation(chosen and chosen.name, None, None, None, tuple(reasons))
    total = sum(sizes)
    largest, smallest = max(needed_by_sample), min(needed_by_sample)
    l0 = sum(needed_by_sample) / len(needed_by_sample)
    d_sae = 2 ** math.ceil(math.log2(2 * total))
    fixed = chosen is not None and chosen.k is not None
    if fixed:
        reasons.append(
            f"k = {largest}: the most that a sample needs, which is one latent per dimension of each of its concepts "
            f"and one for each center; the least is {smallest}."
        )
    else:
        reasons.append(
            f"L0 of about {l0:.0f}: the mean over samples ({smallest} to {largest}); a sample needs one latent per "
            "dimension of each of its concepts and one for each center."
        )
    reasons.append(
        f"d_sae = {d_sae}: all concepts together need {total} latents, twice as many for both signs of each direction, "
        "rounded up to a power of 2."
    )
    missing = len(needed) - len(sizes)
    if missing:
        reasons.append(f"These numbers do not include {missing} concepts whose dimension is not known.")
    return Recommendation(
        chosen and chosen.name, d_sae, largest if fixed else None, None if fixed else l0, tuple(reasons)
    )


def _choose(
    known: list[int],
    architectures: Sequence[Architecture],
    verdicts: Sequence[Verdict],
    heterogeneity: Heterogeneity,
    reasons: list[str],
) -> int:
    """Apply rules 1 to 3 to the architectures with a bound, and append the reasons."""
    best = verdicts[max(known, key=lambda i: verdicts[i].mean_bound)]
    able = [
        i
        for i in known
        if verdicts[i].mean_bound >= best.mean_bound - TOLERANCE
        and verdicts[i].min_bound.high >= best.min_bound.value - TOLERANCE
    ]
    for family in dict.fromkeys(verdicts[i].family for i in known if i not in able):
        short = [verdicts[i] for i in known if i not in able and verdicts[i].family == family]
        reasons.append(
            f"Not {_listed([verdict.name for verdict in short], 'or')}: a latent sees a {family}, whose bound is "
            f"{short[0].mean_bound:.3f} in the mean and {short[0].min_bound.value:.3f} at worst, against "
            f"{best.mean_bound:.3f} and {best.min_bound.value:.3f} for {best.name}."
        )
    uneven = heterogeneity.ratio >= UNEVEN
    adaptive = [i for i in able if architectures[i].k is None]
    if adaptive and len(adaptive) < len(able):
        names = _listed([verdicts[i].name for i in able if i not in adaptive], "or")
        reason = f"Not {names}: the bounds would allow it, but it fixes the number of codes, "
        if uneven:
            reason += (
                f"and the concepts' dimensions differ by a factor of {heterogeneity.ratio:.1f}: one number is too "
            )
            reason += "small for some or too large for others."
        else:
            reason += "an assumption that others do without."
        reasons.append(reason)
        able = adaptive
    chosen = next(i for i in able if not any(_simpler(architectures[j], architectures[i]) for j in able))
    verdict = verdicts[chosen]
    others = [i for i in able if i != chosen]
    reason = (
        f"{verdict.name}: a latent sees a {verdict.family}, and the bounds of {verdict.mean_bound:.3f} in the mean "
    )
    reason += (
        f"and {verdict.min_bound.value:.3f} at worst are within {TOLERANCE:g} of the best, given their uncertainty."
    )
    more = [verdicts[i].name for i in others if _simpler(architectures[chosen], architectures[i])]
    same = [verdicts[i].name for i in others if verdicts[i].name not in more]
    if more:
        reason += f" {_listed(more)} could see as much, but with more freedom than needed."
    if same:
        reason += f" By the bounds, {_listed(same)} would do as well; the first one given is recommended."
    reasons.append(reason)
    if verdict.hides:
        reasons.append(f"Even so, no single latent of it can find {_listed(list(verdict.hides))}.")
    if uneven and architectures[chosen].k is not None:
        reasons.append(
            f"Its one k will not fit all concepts, whose dimensions differ by a factor of {heterogeneity.ratio:.1f}."
        )
    return chosen


def _simpler(one: Architecture, other: Architecture) -> bool:
    """Return whether the receptive fields of `one` are special cases of those of `other`."""
    if one.field is None or other.field is None or one.field == other.field:
        return False
    cases = list(other.field.special_cases)
    return one.field in cases or any(_simpler(one, other._replace(field=case)) for case in cases)


def _listed(names: list[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
