"""HTML page of a diagnosis, without scripts."""

import math
import re
from collections.abc import Sequence
from html import escape

from sae_lightning.geometry.diagnosis import ConceptGeometry, Diagnosis
from sae_lightning.geometry.estimate import Estimate
from sae_lightning.geometry.recommendation import Verdict
from sae_lightning.report.content import Figure
from sae_lightning.report.diagnosis_text import count, number, summary
from sae_lightning.report.page import asset


def render_diagnosis(
    diagnosis: Diagnosis, title: str, facts: Sequence[tuple[str, str]], figures: Sequence[Figure]
) -> str:
    """Render a diagnosis as a self-contained HTML page without scripts.

    Args:
        diagnosis: The diagnosis.
        title: Title of the page.
        facts: Names and values in the head of the page, about the data.
        figures: Figures to show.

    Returns:
        The HTML of the page.
    """
    parts = {
        "title": escape(title),
        "heading": _breakable(title),
        "style": asset("page.css"),
        "facts": "".join(f"<div><dt>{escape(name)}</dt><dd>{_breakable(value)}</dd></div>" for name, value in facts),
        "recommendation": _recommendation(diagnosis),
        "verdicts": _verdicts(diagnosis),
        "concepts": "Clusters, found by k-means" if diagnosis.clustered else "Concepts",
        "warning": "".join(f'<p class="lead">{escape(note)}</p>' for note in diagnosis.notes),
        "table": _table(diagnosis),
        "legend": _legend(diagnosis),
        "figures": _figures(figures),
        "notes": "".join(
            f"<p>{escape(concept.name)}: {escape(note)}.</p>"
            for concept in diagnosis.concepts
            for note in concept.dimension.notes
        ),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("diagnosis.html"))


def _recommendation(diagnosis: Diagnosis) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in diagnosis.recommendation.reasons)
    return f'<p class="advice">{escape(summary(diagnosis))}</p><ul class="reasons">{reasons}</ul>'


def _verdicts(diagnosis: Diagnosis) -> str:
    cards = "".join(_verdict(verdict, diagnosis) for verdict in diagnosis.verdicts)
    return f'<ul class="verdicts">{cards}</ul>'


def _verdict(verdict: Verdict, diagnosis: Diagnosis) -> str:
    chosen = verdict.name == diagnosis.recommendation.architecture
    mark = " <small>recommended</small>" if chosen else ""
    head = f"<h3>{escape(verdict.name)}{mark}</h3>"
    if verdict.family is None:
        return f"<li>{head}<p>Its receptive fields and bounds are unknown.</p></li>"
    field = f"The receptive field of a latent is a {escape(verdict.family)}."
    sees = f'<p class="sees">{field} {escape(verdict.assumes or "")}</p>'
    if math.isnan(verdict.mean_bound):
        return f"<li>{head}{sees}</li>"
    total = len(verdict.shows) + len(verdict.hides)
    lines = f'<p class="count"><b>{len(verdict.shows)}</b> of {total} can be found</p>'
    if verdict.hides:
        lines += f'<p class="hides">would hide: {_names(verdict.hides)}</p>'
    if verdict.shows:
        lines += f'<p class="finds">could find: {_names(verdict.shows)}</p>'
    return f"<li>{head}{lines}{sees}</li>"


def _table(diagnosis: Diagnosis) -> str:
    families = list(dict.fromkeys(family for concept in diagnosis.concepts for family in concept.bounds))
    heads = [
        ("share", "Share of all samples"),
        ("samples", "Number of samples to which bounds were fitted"),
        ("dimension", "Participation ratio"),
        ("90 %", "Number of principal components with 90 % of the energy"),
        ("99 %", "Number of principal components with 99 % of the energy"),
        ("2-NN", "Two-nearest-neighbor estimate; too low in high dimensions"),
        ("k", "Number of codes that a TopK SAE needs for samples of the concept"),
        *((family, f"Best F1 of a single latent whose receptive field is a {family}") for family in families),
    ]
    cells = "".join(f'<th scope="col" title="{escape(title)}">{escape(name)}</th>' for name, title in heads)
    rows = "".join(_row(concept, families, diagnosis.found_above) for concept in diagnosis.concepts)
    first = "Cluster" if diagnosis.clustered else "Concept"
    return f'<thead><tr><th scope="col">{first}</th>{cells}</tr></thead><tbody>{rows}</tbody>'


def _row(concept: ConceptGeometry, families: Sequence[str], found_above: float) -> str:
    d = concept.dimension
    values = [f"{concept.share:.1%}", f"{concept.n_samples:,}", _ends(d.headline, 1)]
    values += [count(d.components_90), count(d.components_99), _ends(d.two_nn, 1)]
    values.append("-" if concept.k is None else str(concept.k))
    cells = "".join(f"<td>{value}</td>" for value in values)
    cells += "".join(_bound(concept.bounds[family], found_above) for family in families)
    return f'<tr><th scope="row">{escape(concept.name)}</th>{cells}</tr>'


def _bound(bound: Estimate, found_above: float) -> str:
    if not bound.known:
        return '<td class="f1 none">n/a</td>'
    state = "found" if bound.value >= found_above else "hidden"
    return (
        f'<td class="f1 {state}" style="--v:{bound.value:.3f}"><span>{bound.value:.3f}</span> '
        f'<small>{bound.low:.3f} to {bound.high:.3f}</small><span class="vh"> {state}</span></td>'
    )


def _ends(estimate: Estimate, digits: int) -> str:
    if not estimate.known:
        return "-"
    ends = f"{estimate.low:.{digits}f} to {estimate.high:.{digits}f}"
    return f"{number(estimate.value, digits)} <small>{ends}</small>"


def _legend(diagnosis: Diagnosis) -> str:
    spread = diagnosis.heterogeneity
    differ = "" if math.isnan(spread.ratio) else f" Dimensions differ by a factor of {spread.ratio:.1f}."
    return (
        f'<p class="legend">Small numbers are intervals of {diagnosis.confidence:.0%}. Dimension: participation ratio; '
        "90 and 99 %: number of principal components with that share of the energy; 2-NN: estimate from the two "
        f"nearest neighbors, too low in high dimensions.{differ} k: the dimension plus one code for the center. "
        "Last columns: best F1 of a single latent with such a receptive field, on samples to which it was not fitted; "
        f'<span class="key">found</span> from {diagnosis.found_above:g}, <span class="key hidden">hidden</span> '
        "below.</p>"
    )


def _figures(figures: Sequence[Figure]) -> str:
    if not figures:
        return ""
    shown = "".join(
        f'<figure><div class="zoom plate"><img alt="{escape(f.caption)}" src="{escape(f.uri)}"></div>'
        f"<figcaption>{escape(f.caption)}</figcaption></figure>"
        for f in figures
    )
    return f'<section id="figures"><h2>Figures</h2><div class="figures large-ones">{shown}</div></section>'


def _breakable(text: str) -> str:
    """Escape a text and allow line breaks after / and _ and before capitals."""
    return re.sub(r"(?<=[/_])|(?<=[a-z])(?=[A-Z])", "<wbr>", escape(text))


def _names(names: Sequence[str]) -> str:
    return "&nbsp;<i>·</i> ".join(f"<b>{escape(name)}</b>" for name in names)
