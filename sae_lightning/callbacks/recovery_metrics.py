"""The metrics that ConceptRecovery measures: one entry of a list for each, from which everything else follows."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from sae_lightning.data.batch import ActivationBatch
from sae_lightning.metrics import (
    L0,
    CodeSimilarity,
    ConceptDiscovery,
    ConceptF1,
    DeadLatents,
    LatentSimilarity,
    Monosemanticity,
    NormalizedMSE,
)
from sae_lightning.modules.member import Evaluation

Stage = Literal["val", "test"]


class Problem(NamedTuple):
    """What a metric is made for: sizes of SAE and data, and the arguments of ConceptRecovery."""

    d_out: int
    d_sae: int
    n_concepts: int
    """0 for unlabeled data."""
    top_n: int
    with_similarity: bool
    """Whether the SAE is small enough for `d_sae x d_sae` moments."""
    discovery_samples: int


class Seen(NamedTuple):
    """What a metric may take of a batch."""

    x: Tensor
    """What is reconstructed, standardized inputs or targets, `(batch, d_out)`."""
    x_hat: Tensor
    """Standardized reconstructions, `(batch, d_out)`."""
    codes: Tensor
    """`(batch, d_sae)`."""
    concepts: Tensor
    """As in `ActivationBatch`; -1 for all samples of unlabeled data."""
    activations: Tensor
    """Raw inputs, `(batch, d_in)`, layers side by side."""


class Column(NamedTuple):
    """A column of the table and of the page."""

    label: str
    """Its head in `results.md`, such as "NMSE"."""
    format: str
    """How its numbers are written, such as ".2e"."""
    meaning: str
    """What its head stands for, in a sentence for the page."""
    page_label: str = ""
    """Its head on the page where that is another."""

    def text(self, value: float | None) -> str:
        """A number as the column shows it."""
        return "-" if value is None else format(value, self.format)


class Scalar(NamedTuple):
    """A number that a metric yields: logged, written to `results.json` and, with a column, shown."""

    key: str
    """Log key without SAE and stage, such as `nmse`; a concept's name follows it if `per_concept`."""
    of: Callable[[Any], Tensor]
    """Takes it from the metric's result: a scalar, or `(n_concepts,)` if `per_concept`."""
    column: Column | None = None
    per_concept: bool = False
    labeled: bool = False
    """Whether it means something for labeled data only."""


def _by_codes(metric: Metric, seen: Seen) -> None:
    metric.update(seen.codes, seen.concepts)


class RecoveryMetric(NamedTuple):
    """One metric of every SAE."""

    name: str
    """Attribute of `Recovery` that holds its result."""
    make: Callable[[Problem], Metric]
    scalars: tuple[Scalar, ...]
    update: Callable[[Any, Seen], None] = _by_codes
    possible: Callable[[Problem], bool] = lambda problem: True
    """Whether data and SAE allow it."""
    applies: Callable[[Stage, Tensor], bool] | None = None
    """Whether it is measured in a stage, of batches with concepts like these; None: in both, of all."""


def _labeled(problem: Problem) -> bool:
    return problem.n_concepts > 0


def _small(problem: Problem) -> bool:
    return problem.with_similarity


METRICS: list[RecoveryMetric] = [
    RecoveryMetric(
        "l0",
        lambda p: L0(p.n_concepts),
        (
            Scalar("l0", lambda r: r.overall, Column("L0", ".2f", "Mean number of latents that fire per sample")),
            Scalar("l0", lambda r: r.per_concept, per_concept=True),
        ),
    ),
    RecoveryMetric(
        "nmse",
        lambda p: NormalizedMSE(p.d_out, p.n_concepts),
        (
            Scalar(
                "nmse",
                lambda r: r.overall,
                Column("NMSE", ".2e", "Normalized mean squared error of the reconstruction"),
            ),
            Scalar("norm_ratio", lambda r: r.norm_ratio),
            Scalar("nmse", lambda r: r.per_concept, per_concept=True),
        ),
        update=lambda metric, seen: metric.update(seen.x, seen.x_hat, seen.concepts),
    ),
    RecoveryMetric(
        "dead",
        lambda p: DeadLatents(p.d_sae),
        (Scalar("dead_latents", lambda r: r.fraction, Column("dead", ".1%", "Latents that never fire")),),
        update=lambda metric, seen: metric.update(seen.codes),
    ),
    RecoveryMetric(
        "f1",
        lambda p: ConceptF1(p.d_sae, p.n_concepts, min(p.top_n, p.d_sae)),
        (
            Scalar("f1", lambda r: r.overall),
            Scalar("best_f1", lambda r: r.best.mean()),
            Scalar("purity", lambda r: r.purity),
            Scalar("f1", lambda r: r.top_n_mean, per_concept=True),
            Scalar("f1_std", lambda r: r.top_n_std, per_concept=True),
            Scalar("best_f1", lambda r: r.best, per_concept=True),
        ),
        possible=_labeled,
    ),
    RecoveryMetric(
        "monosemanticity",
        lambda p: Monosemanticity(p.d_sae, p.n_concepts),
        (
            Scalar(
                "monosemanticity",
                lambda r: r.mean,
                Column("monosem.", ".3f", "Mean monosemanticity: 1 where every latent fires for one concept only"),
                labeled=True,
            ),
            Scalar("monosemanticity_std", lambda r: r.std),
        ),
        possible=_labeled,
    ),
    RecoveryMetric(
        "code_similarity",
        lambda p: CodeSimilarity(p.d_sae, p.n_concepts),
        (
            Scalar(
                "stable_rank_codes",
                lambda r: r.stable_rank,
                Column("rank codes", ".2f", "Stable rank of the codes", page_label="rank"),
            ),
        ),
        possible=_small,
    ),
    RecoveryMetric(
        "latent_similarity",
        lambda p: LatentSimilarity(p.d_sae, p.n_concepts),
        (
            Scalar("stable_rank_latents", lambda r: r.stable_rank),
            Scalar("cross_concept_cosine", lambda r: r.cross_concept, labeled=True),
        ),
        possible=_small,
    ),
    RecoveryMetric(
        "discovery",
        lambda p: ConceptDiscovery(p.d_sae, p.n_concepts, p.discovery_samples),
        (
            Scalar("discovery_rand", lambda r: r.adjusted_rand),
            Scalar("discovery_clusters", lambda r: r.n_clusters),
        ),
        update=lambda metric, seen: metric.update(seen.codes, seen.concepts, seen.activations),
        possible=_labeled,
        applies=lambda stage, concepts: stage == "test" and concepts.ndim == 1,  # clusters have one concept each
    ),
]
"""All of them, in the order of their columns. A line added here is measured, logged, written to `results.json`, and
shown in the table and on the page if one of its scalars has a column."""


def columns() -> list[Scalar]:
    """The scalars that table and page show, in order."""
    return [scalar for metric in METRICS for scalar in metric.scalars if scalar.column is not None]


class Recovery:
    """What was measured of one SAE: the result of each metric by its name, such as `recovery.f1`.

    A result is None where data or size do not allow the metric.

    Args:
        results: Results by name; those of other metrics are None.
        labeled: Whether the data have labels with names.
    """

    def __init__(self, results: dict[str, Any], labeled: bool) -> None:
        self.results = results
        self.labeled = labeled

    def __getattr__(self, name: str) -> Any:
        if name != "results" and any(metric.name == name for metric in METRICS):
            return self.results.get(name)
        raise AttributeError(f"there is no metric {name!r}: choose from {', '.join(m.name for m in METRICS)}")

    def scalars(self, concept_names: list[str]) -> dict[str, Tensor]:
        """The numbers worth logging, by key.

        Args:
            concept_names: Names of the concepts; empty for the numbers of all samples together.
        """
        return {key: value.float() for key, value in self._scalars(concept_names)}

    def _scalars(self, concept_names: list[str]) -> Iterator[tuple[str, Tensor]]:
        for metric in METRICS:
            result = self.results.get(metric.name)
            if result is None:
                continue
            for scalar in metric.scalars:
                if scalar.per_concept:
                    for i, name in enumerate(concept_names):
                        yield f"{scalar.key}/{name}", scalar.of(result)[i]
                elif self.labeled or not scalar.labeled:
                    yield scalar.key, scalar.of(result)


class RecoveryMetrics(nn.Module):
    """The metrics of one SAE, as a module so that they move with it.

    Args:
        problem: What they are made for.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.labeled = problem.n_concepts > 0
        self.metrics = nn.ModuleDict({m.name: m.make(problem) for m in METRICS if m.possible(problem)})
        self._applies: dict[str, bool] = {}

    def _entries(self) -> list[RecoveryMetric]:
        return [metric for metric in METRICS if metric.name in self.metrics]

    def reset(self) -> None:
        """Forget everything."""
        self._applies = {}
        for metric in self.metrics.values():
            metric.reset()  # type: ignore[operator]

    def update(self, batch: ActivationBatch, evaluation: Evaluation, stage: Stage) -> None:
        """Take in one batch."""
        (x_hat, codes, _), x = evaluation.out, evaluation.target
        concepts = batch.concepts
        if not self.labeled:  # labels without names of concepts: how many there are is not known
            concepts = torch.full((len(x),), -1, device=x.device)
        # known on every process, also where its share of the batch is empty: all of them have to compute
        self._applies = {m.name: m.applies is None or m.applies(stage, concepts) for m in self._entries()}
        if len(x) == 0:
            return
        seen = Seen(x, x_hat, codes, concepts, batch.activations.flatten(1))
        for metric in self._entries():
            if self._applies[metric.name]:
                metric.update(self.metrics[metric.name], seen)

    def compute(self) -> Recovery:
        """Combine all batches and processes; every process must call it."""
        applied = [m for m in self._entries() if self._applies.get(m.name, m.applies is None)]
        results = {metric.name: self.metrics[metric.name].compute() for metric in applied}  # type: ignore[operator]
        return Recovery(results, self.labeled)
