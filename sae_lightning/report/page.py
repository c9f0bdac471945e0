"""HTML page of a report, from the template, style and script in this folder."""

import base64
import hashlib
import json
import math
import re
from html import escape
from importlib.resources import files
from typing import Any

from sae_lightning.report.content import Detector, Latent, Report, SAEReport
from sae_lightning.report.excerpts import Picture
from sae_lightning.report.summary import facts, figures, notes, overview, verdicts
from sae_lightning.report.visibility import visibility

# characters that are special in HTML, or line ends in older versions of JavaScript
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&\u2028\u2029"}


def render(report: Report) -> str:
    """Render a report as a self-contained HTML page.

    Summary, table and figures are plain HTML. A script draws concepts and latents from data in the page and never
    parses texts as HTML. A content security policy forbids other scripts and external resources.

    Args:
        report: Content of the page.

    Returns:
        The HTML of the page.
    """
    script = asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    parts = {
        "title": escape(report.title),
        "heading": escape(report.title).replace("/", "/<wbr>").replace("_", "_<wbr>"),
        "policy": f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
        "style": asset("page.css"),
        "script": script,
        "facts": facts(report),
        "verdicts": verdicts(report),
        "overview": overview(report),
        "visibility": visibility(report),
        "figures": figures(report),
        "notes": notes(report),
        "data": embedded(contents(report)),
    }
    # one pass, so that placeholders in the parts themselves are not replaced
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], asset("page.html"))


def contents(report: Report) -> dict[str, Any]:
    """Return the data of the script in JSON types, with references to samples and images by index."""
    place = {position: i for i, position in enumerate(report.samples)}
    images: dict[str, int] = {}
    samples: list[list[Any]] = []
    for position, sample in report.samples.items():
        excerpt = sample.excerpt
        shown: list[Any] = list(excerpt or ())
        if isinstance(excerpt, Picture):
            box = None if excerpt.box is None else [_short(edge) for edge in excerpt.box]
            shown = [images.setdefault(excerpt.uri, len(images)), box]
        samples.append([position, sample.concepts, *shown])
    return {
        "concepts": [list(concept) for concept in report.concepts],
        "found_above": report.found_above,
        "images": list(images),
        "samples": samples,
        "saes": [_sae(sae, place, [other.name for other in report.saes]) for sae in report.saes],
    }


def embedded(value: Any) -> str:
    """Encode a value as JSON without characters that are special in HTML."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).translate(_UNSAFE)


def _sae(sae: SAEReport, place: dict[int, int], names: list[str]) -> dict[str, Any]:
    return {
        "name": sae.name,
        "family": sae.family,
        "color": sae.color,
        "size": sae.n_latents,
        "best": [_short(value) for value in sae.best_f1],
        "detectors": [[_detector(d) for d in best] for best in sae.detectors],
        "latents": [_latent(latent, place) for latent in sae.latents],
        "alone": {names.index(other): overlap.latents for other, overlap in sae.overlaps.items()},
    }


def _latent(latent: Latent, place: dict[int, int]) -> dict[str, Any]:
    return {
        "i": latent.number,
        "frequency": _short(latent.frequency),
        "mean": _short(latent.mean_code),
        "mono": _short(latent.monosemanticity),
        "concept": latent.concept,
        "detects": None if latent.detects is None else _detector(latent.detects),
        "examples": [[place[example.sample], _short(example.code)] for example in latent.examples],
    }


def _detector(detector: Detector) -> list[Any]:
    return [detector.latent, *map(_short, detector[1:])]


def _short(value: float | None) -> float | None:
    """Round a number to four significant digits; None if it is unknown or infinite."""
    return float(f"{value:.4g}") if value is not None and math.isfinite(value) else None


def asset(name: str) -> str:
    """Return the content of a file in this folder."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
