"""A diagnosis as one HTML page without a script: plain data in, a string out."""

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
    """Write a diagnosis as one HTML file that needs nothing else, and runs no script.

    Args:
        diagnosis: What was found.
        title: Title of the page.
        facts: What its head says of the data: names and values.
        figures: Figures to show.

    Returns:
        The file's content.
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
        return f"<li>{head}<p>Its receptive fields are not known, and so are its bounds.</p></li>"
    sees = f'<p class="sees">A latent sees a {escape(verdict.family)}. {escape(verdict.assumes or "")}</p>'
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
        ("samples", "Samples to which bounds were fitted"),
        ("dimension", "Participation ratio"),
        ("90 %", "Principal components for 90 % of the energy"),
        ("99 %", "Principal components for 99 % of the energy"),
        ("2-NN", "Two nearest neighbours; underestimates high dimensions"),
        ("k", "Codes that a TopK needs for its samples"),
        *((family, f"Best F1 that a single latent with a {family} could reach") for family in families),
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
    differ = "" if math.isnan(spread.ratio) else f" They differ by a factor of {spread.ratio:.1f}."
    return (
        f'<p class="legend">Small numbers are intervals of {diagnosis.confidence:.0%}. Dimension is the participation '
        "ratio, beside principal components for 90 and 99 % of the energy and the estimate from two nearest "
        f"neighbours, which is too low in high dimensions.{differ} k is the dimension and one code for the centre. "
        "Last columns: best F1 that any single latent with such a receptive field could reach, on samples to which it "
        f'was not fitted; <span class="key">found</span> from {diagnosis.found_above:g}, '
        '<span class="key hidden">hidden</span> below.</p>'
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
    """Text that may be broken within long names: behind / and _, and before capitals."""
    return re.sub(r"(?<=[/_])|(?<=[a-z])(?=[A-Z])", "<wbr>", escape(text))


def _names(names: Sequence[str]) -> str:
    return "&nbsp;<i>·</i> ".join(f"<b>{escape(name)}</b>" for name in names)
