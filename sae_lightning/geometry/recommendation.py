"""Which architecture, how many latents, and how many that fire: what bounds and dimensions speak for, in words."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from sae_lightning.geometry.dimension import Heterogeneity
from sae_lightning.geometry.estimate import Estimate
from sae_lightning.nn.receptive_fields import ReceptiveField

TOLERANCE = 0.02
"""Difference in F1 that counts as none."""
UNEVEN = 2.0
"""Ratio of the largest to the smallest dimension from which one k does not fit all concepts."""


class Architecture(NamedTuple):
    """An SAE architecture, as far as its assumptions go."""

    name: str
    field: ReceptiveField | None
    """What a single latent of it can see; None where that is not known."""
    k: int | None = None
    """How many codes it keeps of every sample, whatever the sample; None where their number adapts."""


class Verdict(NamedTuple):
    """What the assumptions of an architecture do to the concepts of the data."""

    name: str
    family: str | None
    """Name of its receptive fields; None where they are not known, and so are the bounds."""
    assumes: str | None
    k: int | None
    """How many codes it keeps of every sample; None where their number adapts."""
    mean_bound: float
    """Mean over concepts of the best F1 that a single latent could reach."""
    min_bound: Estimate
    """The bound of the concept for which it is smallest."""
    shows: tuple[str, ...]
    """Concepts that a single latent could find, as far as the interval of the bound tells."""
    hides: tuple[str, ...]
    """Concepts that no single latent of it can find, whatever the training: the whole interval lies too low."""


class Recommendation(NamedTuple):
    """What to train; None for what the data do not tell."""

    architecture: str | None
    d_sae: int | None
    k: int | None
    """What to ask for where the recommended architecture keeps a fixed number of codes."""
    l0: float | None
    """Mean number of firing latents to ask for otherwise."""
    reasons: tuple[str, ...]


def recommend(
    architectures: Sequence[Architecture],
    verdicts: Sequence[Verdict],
    needed: Sequence[int | None],
    needed_by_sample: Sequence[int],
    heterogeneity: Heterogeneity,
) -> Recommendation:
    """Choose by rules that bounds and dimensions give reasons for.

    Architecture:

    1. Those whose mean and smallest bound over the concepts are both within 0.02 of those of the one with the highest
       mean can see what any of them can see; of the smallest it is the upper end of the interval that counts, since
       few held-out samples may tell no better. An architecture whose receptive fields are not known does not compete.
    2. One that keeps a fixed number of codes is left out if others remain. That number is an assumption more, and where
       the concepts' dimensions differ by a factor of 2 or more it is too small for one or too large for another.
    3. Of the rest the simplest: one is simpler than another if its receptive fields are special cases of the other's.
       More freedom than the data ask for has to be learned, and lets latents split concepts. Where none is simpler,
       the first in the order in which they were given.

    Numbers:

    4. A sample of a concept takes about a latent for each direction in which the concept varies, and one for its
       centre: its dimension plus 1. A sample of several concepts takes the sum. The largest over the samples is the k
       that a fixed number of codes needs; where the number adapts, the L0 to ask for is the mean over the samples.
    5. Codes are never negative, so that a direction takes two latents, one for either side. The width is twice the sum
       of what all concepts need, as if they shared no latent, rounded up to a power of 2.

    Args:
        architectures: Those to choose from, in order of preference where nothing else decides.
        verdicts: What was found of each.
        needed: Latents that a sample of each concept needs; None where its dimension is not known.
        needed_by_sample: Latents that each sample needs, over those with a concept whose dimension is known.
        heterogeneity: How much the concepts' dimensions differ.
    """
    known = [i for i, verdict in enumerate(verdicts) if not math.isnan(verdict.mean_bound)]
    reasons: list[str] = []
    chosen = None
    if known:
        chosen = architectures[_choose(known, architectures, verdicts, heterogeneity, reasons)]
    else:
        reasons.append("No architecture is named, since no bound is known.")
    sizes = [n for n in needed if n is not None]
    if not needed_by_sample:
        reasons.append("Width and sparsity are not named, since no concept's dimension is known.")
        return Recommendation(chosen and chosen.name, None, None, None, tuple(reasons))
    total = sum(sizes)
    largest, smallest = max(needed_by_sample), min(needed_by_sample)
    l0 = sum(needed_by_sample) / len(needed_by_sample)
    d_sae = 2 ** math.ceil(math.log2(2 * total))
    fixed = chosen is not None and chosen.k is not None
    if fixed:
        reasons.append(
            f"k = {largest}: the most that a sample needs (for each of its concepts the dimension, and one for the "
            f"centre); the least is {smallest}."
        )
    else:
        reasons.append(
            f"L0 of about {l0:.0f}: the mean over samples ({smallest} to {largest}); a sample needs, for each of its "
            "concepts, the dimension, and one latent for the centre."
        )
    reasons.append(
        f"d_sae = {d_sae}: all concepts together need {total}, twice that for either sign of every direction, "
        "rounded up to a power of 2."
    )
    missing = len(needed) - len(sizes)
    if missing:
        reasons.append(f"These are too small by what the {missing} concepts need whose dimension is not known.")
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
    """Apply rules 1 to 3 to the architectures with a bound, and say what they did."""
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
        f"and {verdict.min_bound.value:.3f} at worst are within {TOLERANCE:g} of the best, or cannot be told from that."
    )
    more = [verdicts[i].name for i in others if _simpler(architectures[chosen], architectures[i])]
    same = [verdicts[i].name for i in others if verdicts[i].name not in more]
    if more:
        reason += f" {_listed(more)} could see as much, but with more freedom than that takes."
    if same:
        reason += f" As far as the bounds go, {_listed(same)} would do as well; the first one given is named."
    reasons.append(reason)
    if verdict.hides:
        reasons.append(f"Even so, no single latent of it can find {_listed(list(verdict.hides))}.")
    if uneven and architectures[chosen].k is not None:
        reasons.append(
            f"Its one k will not fit all concepts, whose dimensions differ by a factor of {heterogeneity.ratio:.1f}."
        )
    return chosen


def _simpler(one: Architecture, other: Architecture) -> bool:
    """Whether the receptive fields of one are special cases of the other's."""
    if one.field is None or other.field is None or one.field == other.field:
        return False
    cases = list(other.field.special_cases)
    return one.field in cases or any(_simpler(one, other._replace(field=case)) for case in cases)


def _listed(names: list[str], word: str = "and") -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} {word} {names[-1]}"
