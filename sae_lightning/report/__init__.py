"""Results of a run as a self-contained HTML page, rendered from plain data."""

from sae_lightning.report.content import (
    Concept,
    Detector,
    Example,
    Figure,
    Latent,
    Measure,
    Overlap,
    Report,
    SAEReport,
    Sample,
)
from sae_lightning.report.diagnosis import render_diagnosis
from sae_lightning.report.diagnosis_text import diagnosis_text
from sae_lightning.report.excerpts import Excerpt, Picture, Text, make_excerpt, read_excerpts
from sae_lightning.report.figures import read_figures
from sae_lightning.report.page import render

__all__ = [
    "Concept",
    "Detector",
    "Example",
    "Excerpt",
    "Figure",
    "Latent",
    "Measure",
    "Overlap",
    "Picture",
    "Report",
    "SAEReport",
    "Sample",
    "Text",
    "diagnosis_text",
    "make_excerpt",
    "read_excerpts",
    "read_figures",
    "render",
    "render_diagnosis",
]
