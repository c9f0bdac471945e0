"""Parts of the page without script: head, verdicts, table and figures."""

import math
from html import escape

from sae_lightning.report.content import Report, SAEReport

_MANY_SAES = 12  # above this, verdicts are collapsed


def facts(report: Report) -> str:
    """Render the facts of the run as a description list."""
    return "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in report.facts)


def split_found(sae: SAEReport, report: Report) -> tuple[list[str], list[str]]:
    """Return the names of the concepts that an SAE finds and hides; concepts without samples are in neither list."""
    known = [(c.name, f1) for c, f1 in zip(report.concepts, sae.best_f1, strict=True) if not math.isnan(f1)]
    found = [name for name, f1 in known if f1 >= report.found_above]
    return found, [name for name, f1 in known if f1 < report.found_above]


def verdicts(report: Report) -> str:
    """Render a card per SAE with the concepts that it finds and hides; empty for unlabeled data."""
    if not report.concepts:
        return ""
    cards = "".join(_verdict(sae, report) for sae in report.saes)
    cards = f'<ul class="verdicts">{cards}</ul>'
    if len(report.saes) <= _MANY_SAES:
        return cards
    return f"<details><summary>Concepts that each of {len(report.saes)} SAEs finds and hides</summary>{cards}</details>"


def _verdict(sae: SAEReport, report: Report) -> str:
    found, hidden = split_found(sae, report)
    total = len(found) + len(hidden)
    head = f"<h3>{_swatch(sae)}{escape(sae.name)}{_family(sae)}</h3>"
    if not total:
        return f"<li>{head}<p>No concept has samples here.</p></li>"
    count = f'<p class="count"><b>{len(found)}</b> of {total} concepts found</p>'
    lines = ""
    if hidden:
        lines += f'<p class="hides">hides: {_names(hidden)}</p>'
    if found:
        lines += f'<p class="finds">finds: {_names(found)}</p>'
    return f"<li>{head}{count}{lines}</li>"


def overview(report: Report) -> str:
    """Render the table with a row per SAE, its metrics, and the F1 of its best latent for each concept."""
    labeled = bool(report.concepts)
    heads = [(measure.label, measure.meaning) for measure in (report.saes[0].measures if report.saes else ())]
    if labeled:
        heads.append(("mean F1", "Mean over concepts of the best latent's F1"))
    cells = "".join(f'<th scope="col" title="{escape(title)}">{escape(name)}</th>' for name, title in heads)
    cells += "".join(
        f'<th scope="col" class="concept">{escape(c.name)}<span style="--c:{escape(c.color)}"></span></th>'
        for c in report.concepts
    )
    rows = "".join(_row(sae, report) for sae in report.saes)
    return f'<thead><tr><th scope="col">SAE</th>{cells}</tr></thead><tbody>{rows}</tbody>'


def _row(sae: SAEReport, report: Report) -> str:
    values = [escape(measure.text) for measure in sae.measures]
    if report.concepts:
        known = [f1 for f1 in sae.best_f1 if not math.isnan(f1)]
        values.append(_number(sum(known) / len(known) if known else None))
    cells = "".join(f"<td>{value}</td>" for value in values)
    cells += "".join(_cell(f1, report.found_above) for f1 in sae.best_f1)
    return f'<tr><th scope="row">{_swatch(sae)}{escape(sae.name)}</th>{cells}</tr>'


def _cell(f1: float, found_above: float) -> str:
    if math.isnan(f1):
        return '<td class="f1 none" title="no samples">n/a</td>'
    state = "found" if f1 >= found_above else "hidden"
    return f'<td class="f1 {state}" style="--v:{f1:.3f}"><span>{f1:.3f}</span><span class="vh"> {state}</span></td>'


def figures(report: Report) -> str:
    """Render the figures of the run; empty if there are none."""
    if not report.figures:
        return ""
    shown = "".join(
        f'<figure><button type="button" class="zoom"><img loading="lazy" alt="{escape(f.caption)}" '
        f'src="{escape(f.uri)}"></button><figcaption>{escape(f.caption)}</figcaption></figure>'
        for f in report.figures
    )
    return f'<section id="figures"><h2>Figures</h2><div class="figures">{shown}</div></section>'


def notes(report: Report) -> str:
    """Render the notes."""
    return "".join(f"<p>{escape(note)}</p>" for note in report.notes)


def _swatch(sae: SAEReport) -> str:
    return f'<span class="swatch" style="--c:{escape(sae.color)}"></span>'


def _family(sae: SAEReport) -> str:
    return "" if sae.family.removesuffix("SAE").lower() == sae.name.lower() else f" <small>{escape(sae.family)}</small>"


def _names(names: list[str]) -> str:
    return "&nbsp;<i>·</i> ".join(f"<b>{escape(name)}</b>" for name in names)


def _number(value: float | None, digits: int = 3) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"
