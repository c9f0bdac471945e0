"""Section of the page on achieved and possible F1, and on latents without counterpart."""

import math
from html import escape

from sae_lightning.geometry import Sight
from sae_lightning.report.content import Report, SAEReport

_STATES = {
    "found": "found",
    "missed": "hidden",
    "hidden": "hidden",
    "out of reach": "hidden beyond",
    "no samples": "none",
}


def visibility(report: Report) -> str:
    """Render the section with both tables; empty if neither was measured."""
    tables = _sights(report) + _overlaps(report)
    return f'<section id="visibility"><h2>Visibility</h2>{tables}</section>' if tables else ""


def _sights(report: Report) -> str:
    """Render a row per SAE: for each concept the F1 of its best latent and the bound of its architecture."""
    if not any(sight.bound.known for sae in report.saes for sight in sae.sights):
        return ""
    heads = "".join(f'<th scope="col" class="concept">{_concept(c.name, c.color)}</th>' for c in report.concepts)
    rows = "".join(_seen(sae) for sae in report.saes)
    return (
        '<p class="lead">F1 of the best latent for each concept and, below it, the bound for any single latent of the '
        f"architecture, fitted to training samples. A concept is found if the F1 is at least {report.found_above:g}. "
        "If not, training <b>missed</b> it, or it is <b>out of reach</b> of any latent of this architecture.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Achieved and possible F1">'
        '<table class="overview sights"><caption class="vh">Achieved and possible F1 of each concept</caption>'
        f'<thead><tr><th scope="col">SAE</th><th scope="col">receptive field</th>{heads}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _concept(name: str, color: str) -> str:
    return f'{escape(name)}<span style="--c:{escape(color)}"></span>'


def _seen(sae: SAEReport) -> str:
    cells = "".join(_cell(sight) for sight in sae.sights)
    field = "unknown" if sae.field is None else escape(sae.field)
    return f'<tr><th scope="row">{_name(sae)}</th><td>{field}</td>{cells}</tr>'


def _cell(sight: Sight) -> str:
    if sight.state == "no samples":
        return '<td class="f1 none" title="no samples">n/a</td>'
    value, low, high = sight.bound
    bound = f"of {value:.3f}" if sight.bound.known else "of ?"
    title = f"bound {value:.3f} ({low:.3f} to {high:.3f})" if sight.bound.known else "no bound"
    return (
        f'<td class="f1 {_STATES[sight.state]}" style="--v:{sight.best_f1:.3f}" title="{sight.state}; {title}">'
        f"<span>{sight.best_f1:.3f}</span><small>{bound}</small><small>{sight.state}</small></td>"
    )


def _overlaps(report: Report) -> str:
    """Render the share of each SAE's latents without counterpart in each other SAE."""
    if not any(sae.overlaps for sae in report.saes):
        return ""
    heads = "".join(f'<th scope="col">{_name(sae)}</th>' for sae in report.saes)
    rows = "".join(
        f'<tr><th scope="row">{_name(sae)}</th>{"".join(_alone(sae, other) for other in report.saes)}</tr>'
        for sae in report.saes
    )
    return (
        '<p class="lead">Share of the live latents of the SAE in the row without counterpart in the SAE in the column. '
        f"Counterparts fire on the same samples with a Jaccard index of {report.min_jaccard:g} or more. Small numbers: "
        "the share with samples paired at random. The filter <i>Without counterpart in</i> below selects these "
        "latents.</p>"
        '<div class="scroll" tabindex="0" role="region" aria-label="Latents without counterpart">'
        '<table class="overview overlaps"><caption class="vh">Share of latents without counterpart</caption>'
        f'<thead><tr><th scope="col">latents of</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _alone(sae: SAEReport, other: SAEReport) -> str:
    if other.name not in sae.overlaps:
        return "<td></td>"
    share, by_chance, latents = sae.overlaps[other.name]
    if math.isnan(share):
        return '<td class="none" title="no latent fires">n/a</td>'
    return f'<td title="{len(latents)} latents"><span>{share:.1%}</span><small>{by_chance:.0%}</small></td>'


def _name(sae: SAEReport) -> str:
    return f'<span class="swatch" style="--c:{escape(sae.color)}"></span>{escape(sae.name)}'
