"""Data, and every metric with its functional twin, for the tests that all of them must pass."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_lightning import metrics
from sae_lightning.metrics import functional

D_IN, D_SAE, N_CONCEPTS = 6, 12, 4


class Samples(NamedTuple):
    x: Tensor
    x_hat: Tensor
    codes: Tensor
    concepts: Tensor
    index: Tensor

    def part(self, rows: slice | Tensor) -> "Samples":
        return Samples(*(field[rows] for field in self))


def make_samples(n: int = 240, seed: int = 0, overlapping: bool = False) -> Samples:
    """Sparse codes of which some latents prefer a concept, two are dead, and some samples have none at all."""
    generator = torch.Generator().manual_seed(seed)
    concepts = torch.randint(-1, N_CONCEPTS, (n,), generator=generator)
    x = torch.randn(n, D_IN, generator=generator) + 3.0 * concepts[:, None]
    codes = torch.rand(n, D_SAE, generator=generator) * (torch.rand(n, D_SAE, generator=generator) < 0.2)
    codes += (torch.arange(D_SAE) == concepts[:, None]) * torch.rand(n, 1, generator=generator)
    codes[:, -2:] = 0.0
    codes[::17] = 0.0
    codes[3::29, 5] = 1e-7  # above zero, but does not fire
    x_hat = x + 0.1 * torch.randn(n, D_IN, generator=generator)
    if overlapping:
        concepts = torch.rand(n, N_CONCEPTS, generator=generator) < 0.4
    return Samples(x, x_hat, codes, concepts, torch.arange(n))


@dataclass(frozen=True)
class Case:
    """A metric: how to make it, what to feed it, and its twin."""

    name: str
    make: Callable[[], Any]
    arguments: Callable[[Samples], tuple[Tensor, ...]]
    twin: Callable[[Samples], Any]
    overlapping: bool = True
    exact: bool = False


def _codes_and_concepts(s: Samples) -> tuple[Tensor, ...]:
    return s.codes, s.concepts


def _codes_and_other_codes(s: Samples) -> tuple[Tensor, ...]:
    """Those of an SAE whose latents are turned by one place, and fire on two samples of three."""
    return s.codes, s.codes.roll(1, dims=-1) * (s.index % 3 > 0)[:, None]


def _logits_and_targets(s: Samples) -> tuple[Tensor, ...]:
    targets = s.x.argmin(1) if len(s.x) else torch.zeros(0, dtype=torch.int64)
    return s.x_hat, s.x, torch.zeros_like(s.x), s.x.flip(1), targets


CASES = [
    Case(
        "L0",
        lambda: metrics.L0(N_CONCEPTS),
        _codes_and_concepts,
        lambda s: functional.l0(s.codes, s.concepts, N_CONCEPTS),
        exact=True,
    ),
    Case(
        "NormalizedMSE",
        lambda: metrics.NormalizedMSE(D_IN, N_CONCEPTS),
        lambda s: (s.x, s.x_hat, s.concepts),
        lambda s: functional.normalized_mse(s.x, s.x_hat, s.concepts, N_CONCEPTS),
    ),
    Case(
        "DeadLatents",
        lambda: metrics.DeadLatents(D_SAE),
        lambda s: (s.codes,),
        lambda s: functional.dead_latents(s.codes),
        exact=True,
    ),
    Case(
        "Fidelity",
        metrics.Fidelity,
        _logits_and_targets,
        lambda s: functional.fidelity(*_logits_and_targets(s)),
    ),
    Case(
        "ConceptF1",
        lambda: metrics.ConceptF1(D_SAE, N_CONCEPTS),
        _codes_and_concepts,
        lambda s: functional.concept_f1(s.codes, s.concepts, N_CONCEPTS),
        exact=True,
    ),
    Case(
        "Monosemanticity",
        lambda: metrics.Monosemanticity(D_SAE, N_CONCEPTS),
        _codes_and_concepts,
        lambda s: functional.monosemanticity(s.codes, s.concepts, N_CONCEPTS),
        exact=True,
    ),
    Case(
        "CodeSimilarity",
        lambda: metrics.CodeSimilarity(D_SAE, N_CONCEPTS),
        _codes_and_concepts,
        lambda s: functional.code_similarity(s.codes, s.concepts, N_CONCEPTS),
    ),
    Case(
        "LatentSimilarity",
        lambda: metrics.LatentSimilarity(D_SAE, N_CONCEPTS),
        _codes_and_concepts,
        lambda s: functional.latent_similarity(s.codes, s.concepts, N_CONCEPTS),
    ),
    Case(
        "LatentOverlap",
        lambda: metrics.LatentOverlap(D_SAE, D_SAE),
        _codes_and_other_codes,
        lambda s: functional.latent_overlap(*_codes_and_other_codes(s)),
        exact=True,
    ),
    Case(
        "TopExamples",
        lambda: metrics.TopExamples(D_SAE, n=5),
        lambda s: (s.codes, s.index),
        lambda s: functional.top_examples(s.codes, s.index, n=5),
    ),
    Case(
        "ConceptDiscovery",
        lambda: metrics.ConceptDiscovery(D_SAE, N_CONCEPTS, max_samples=50),
        lambda s: (s.codes, s.concepts, s.x),
        lambda s: functional.concept_discovery(s.codes, s.concepts),
        overlapping=False,
        exact=True,
    ),
]


def feed(case: Case, samples: Samples, sizes: list[int]) -> Any:
    """Update a new metric with consecutive batches of these sizes."""
    metric = case.make()
    for batch in torch.arange(len(samples.x)).split(sizes):
        metric.update(*case.arguments(samples.part(batch)))
    return metric


def assert_same(result: Any, reference: Any, exact: bool = False) -> None:
    """Compare two results field by field, in value, shape and dtype."""
    assert type(result).__name__ == type(reference).__name__
    assert result._fields == reference._fields
    tolerance = 0.0 if exact else 1e-12
    for name, value, wanted in zip(result._fields, result, reference, strict=True):
        torch.testing.assert_close(
            value, wanted, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, name=name: f"{name}: {m}"
        )
