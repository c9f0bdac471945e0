"""What the page shows, as plain data; None or NaN is what is not known."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sae_lightning.geometry import Sight
from sae_lightning.report.excerpts import Excerpt


class Concept(NamedTuple):
    """A concept of the data."""

    name: str
    color: str
    """Its colour in every figure, such as "#332288"."""


class Example(NamedTuple):
    """A sample on which a latent fires."""

    sample: int
    """Its position in the test data."""
    code: float


class Detector(NamedTuple):
    """How well a latent detects one concept."""

    latent: int
    f1: float
    precision: float
    recall: float


class Latent(NamedTuple):
    """A latent that is shown."""

    number: int
    frequency: float
    """Share of the samples on which it fires."""
    mean_code: float
    """Mean code where it fires."""
    examples: list[Example]
    """Its largest codes, the largest first."""
    concept: int | None
    """The concept that it detects best, if any."""
    detects: Detector | None
    """How well."""
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
    """What was measured of one SAE."""

    name: str
    family: str
    """Name of its class."""
    color: str
    n_latents: int
    measures: list[Measure]
    """What was measured of it, with the same columns for all SAEs."""
    best_f1: list[float]
    """F1 of the best latent for each concept, NaN for a concept without samples; empty for unlabelled data."""
    detectors: list[list[Detector]]
    """The best latents of each concept, the best first."""
    latents: list[Latent]
    """The latents that are shown."""
    field: str | None = None
    """The family of its latents' receptive fields, where it is known."""
    sights: Sequence[Sight] = ()
    """How it sees each concept, beside what it could; empty where nobody looked."""
    overlaps: Mapping[str, "Overlap"] = {}
    """Which of its latents have no counterpart in another SAE, by that SAE's name."""


class Overlap(NamedTuple):
    """Which latents of one SAE have no counterpart in another."""

    alone: float
    """Share of its live latents; NaN if none is alive."""
    by_chance: float
    """The same where samples are paired at random."""
    latents: list[int]
    """Which these are."""


class Sample(NamedTuple):
    """A sample of the test data."""

    concepts: list[int]
    """The concepts that it belongs to."""
    excerpt: Excerpt | None
    """Where it comes from, where the data know it."""


class Figure(NamedTuple):
    """A figure of the run."""

    caption: str
    uri: str
    """The image as a `data:` address."""


class Report(NamedTuple):
    """A run."""

    title: str
    facts: list[tuple[str, str]]
    """What the head of the page says of the run: names and values, such as `("Seed", "0")`."""
    concepts: list[Concept]
    found_above: float
    """Best F1 from which a concept counts as found."""
    saes: list[SAEReport]
    samples: dict[int, Sample]
    """The samples of all examples, by position."""
    figures: list[Figure]
    notes: list[str]
    """What a reader should know about the page, such as what was left out."""
    min_jaccard: float = 0.5
    """Jaccard index of their firing from which latents of two SAEs are counterparts."""
