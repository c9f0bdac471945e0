"""Text of a diagnosis, for the terminal."""

import math
import textwrap
from collections.abc import Sequence

from sae_lightning.geometry.diagnosis import Diagnosis
from sae_lightning.geometry.estimate import Estimate

_WIDTH = 110


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """Format a diagnosis as text.

    Args:
        diagnosis: The diagnosis.

    Returns:
        Tables of concepts and architectures, and the recommendation with its reasons.
    """
    families = list(dict.fromkeys(family for concept in diagnosis.concepts for family in concept.bounds))
    what = "Cluster" if diagnosis.clustered else "Concept"
    head = [what, "share", "samples", "dimension", "90 %", "99 %", "2-NN", "k", *families]
    rows = [
        [
            concept.name,
            f"{concept.share:.1%}",
            f"{concept.n_samples:,}",
            interval(concept.dimension.headline),
            count(concept.dimension.components_90),
            count(concept.dimension.components_99),
            number(concept.dimension.two_nn.value, 1),
            "-" if concept.k is None else str(concept.k),
            *(bounded(concept.bounds[family].value, diagnosis.found_above) for family in families),
        ]
        for concept in diagnosis.concepts
    ]
    lines = [*_table(head, rows), ""]
    lines += _wrapped(
        "Dimension: participation ratio with its interval; 90 and 99 %: number of principal components with that share "
        "of the energy; 2-NN: estimate from the two nearest neighbors, too low in high dimensions. k: number of codes "
        "that a TopK SAE needs for samples of the concept. Last columns: best F1 of a single latent with such a "
        f"receptive field, in parentheses below {diagnosis.found_above:g}."
    )
    lines += [""]
    spread = diagnosis.heterogeneity
    if not math.isnan(spread.ratio):
        lines += _wrapped(
            f"Dimensions differ by a factor of {spread.ratio:.1f}; their standard deviation is {spread.variation:.2f} "
            "times their mean."
        )
    for concept in diagnosis.concepts:
        lines += [line for note in concept.dimension.notes for line in _wrapped(f"{concept.name}: {note}.")]
    lines += [line for note in diagnosis.notes for line in _wrapped(note)]
    found = [
        [
            verdict.name,
            verdict.family or "unknown",
            number(verdict.mean_bound),
            number(verdict.min_bound.value),
            ", ".join(verdict.hides) or ("-" if math.isnan(verdict.mean_bound) else "nothing"),
        ]
        for verdict in diagnosis.verdicts
    ]
    lines += ["", *_table(["SAE", "receptive field", "mean", "min", "would hide"], found), ""]
    lines += [f"Recommendation: {summary(diagnosis)}", ""]
    lines += [line for reason in diagnosis.recommendation.reasons for line in _wrapped(reason, "* ")]
    return "\n".join(lines)


def summary(diagnosis: Diagnosis) -> str:
    """Format the recommendation as one line."""
    found = diagnosis.recommendation
    parts = [found.architecture or "no architecture"]
    if found.d_sae is not None:
        parts.append(f"d_sae {found.d_sae}")
    if found.k is not None:
        parts.append(f"k {found.k}")
    if found.l0 is not None:
        parts.append(f"L0 about {found.l0:.0f}")
    return ", ".join(parts)


def interval(estimate: Estimate, digits: int = 1) -> str:
    """Format an estimate with its interval."""
    if not estimate.known:
        return "-"
    return f"{estimate.value:.{digits}f} ({estimate.low:.{digits}f} to {estimate.high:.{digits}f})"


def count(estimate: Estimate) -> str:
    """Format an integer estimate, with its interval if the ends differ."""
    if not estimate.known:
        return "-"
    ends = "" if estimate.low == estimate.high else f" ({estimate.low:.0f} to {estimate.high:.0f})"
    return f"{estimate.value:.0f}{ends}"


def number(value: float, digits: int = 3) -> str:
    """Format a number, or a dash for NaN."""
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def bounded(value: float, found_above: float) -> str:
    """Format an F1, in parentheses if it is below `found_above`."""
    return f"({number(value)})" if value < found_above else number(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    lines = ["| " + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) + " |" for row in (head, *rows)]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return lines


def _wrapped(text: str, bullet: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=bullet, subsequent_indent=" " * len(bullet))
