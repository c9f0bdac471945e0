"""Content of the report page as plain data; unknown values are None or NaN."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sae_lightning.geometry import Sight
from sae_lightning.report.excerpts import Excerpt


class Concept(NamedTuple):
    """A concept of the data."""

    name: str
    color: str
    """Color in all figures, such as "#332288"."""


class Example(NamedTuple):
    """A sample on which a latent fires."""

    sample: int
    """Position in the test data."""
    code: float


class Detector(NamedTuple):
    """Scores of a latent as a detector of one concept."""

    latent: int
    f1: float
    precision: float
    recall: float


class Latent(NamedTuple):
    """A latent on the page."""

    number: int
    frequency: float
    """Share of the samples on which it fires."""
    mean_code: float
    """Mean code over these samples."""
    examples: list[Example]
    """Samples with the largest codes, largest first."""
    concept: int | None
    """Index of the concept that it detects best, if any."""
    detects: Detector | None
    """Scores for that concept."""
    monosemanticity: float | None


class Measure(NamedTuple):
    """A number of one SAE in the table."""

    label: str
    """Head of its column, such as "NMSE"."""
    meaning: str
    """What the head stands for."""
    text: str
    """The number as it is shown; "-" where it is not known."""


class SAEReport(NamedTuple):
    """Measurements of one SAE."""

    name: str
    family: str
    """Class name."""
    color: str
    n_latents: int
    measures: list[Measure]
    """What was measured of it, with the same columns for all SAEs."""
    best_f1: list[float]
    """F1 of the best latent for each concept, NaN for a concept without samples; empty for unlabeled data."""
    detectors: list[list[Detector]]
    """Best latents for each concept, best first."""
    latents: list[Latent]
    """Latents on the page."""
    field: str | None = None
    """Family of the latents' receptive fields, if known."""
    sights: Sequence[Sight] = ()
    """Achieved F1 and its bound for each concept; empty if not measured."""
    overlaps: Mapping[str, "Overlap"] = {}
    """Latents without counterpart in another SAE, by the name of that SAE."""


class Overlap(NamedTuple):
    """Latents of one SAE without counterpart in another SAE."""

    alone: float
    """Share of the live latents; NaN if none is alive."""
    by_chance: float
    """The same share with samples paired at random."""
    latents: list[int]
    """Indices of these latents."""


class Sample(NamedTuple):
    """A sample of the test data."""

    concepts: list[int]
    """Indices of its concepts."""
    excerpt: Excerpt | None
    """Text or image that the activation comes from, if known."""


class Figure(NamedTuple):
    """A figure of the run."""

    caption: str
    uri: str
    """The image as a `data:` URI."""


class Report(NamedTuple):
    """Content of the page of a run."""

    title: str
    facts: list[tuple[str, str]]
    """Names and values in the head of the page, such as `("Seed", "0")`."""
    concepts: list[Concept]
    found_above: float
    """Smallest best F1 of a concept that counts as found."""
    saes: list[SAEReport]
    samples: dict[int, Sample]
    """Samples of all examples, by position."""
    figures: list[Figure]
    notes: list[str]
    """Notes at the foot of the page, for example about samples that are left out."""
    min_jaccard: float = 0.5
    """Smallest Jaccard index of two latents that are counterparts."""
