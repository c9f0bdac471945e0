"""Concept recovery: measure in validation and test what each SAE finds."""

from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.callbacks.data import HasConcepts, data_of
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
from sae_lightning.metrics.functional import (
    CodeSimilarityResult,
    ConceptDiscoveryResult,
    ConceptF1Result,
    DeadLatentsResult,
    L0Result,
    LatentSimilarityResult,
    MonosemanticityResult,
    NormalizedMSEResult,
)
from sae_lightning.modules.module import Evaluation, SAEModule, log_key

Stage = Literal["val", "test"]


class Recovery(NamedTuple):
    """What was measured of one SAE; None where data or size do not allow it."""

    l0: L0Result
    nmse: NormalizedMSEResult
    dead: DeadLatentsResult
    f1: ConceptF1Result | None
    monosemanticity: MonosemanticityResult | None
    code_similarity: CodeSimilarityResult | None
    latent_similarity: LatentSimilarityResult | None
    discovery: ConceptDiscoveryResult | None

    def scalars(self, concept_names: list[str]) -> dict[str, Tensor]:
        """The numbers worth logging, by key."""
        values = {
            "l0": self.l0.overall,
            "nmse": self.nmse.overall,
            "norm_ratio": self.nmse.norm_ratio,
            "dead_latents": self.dead.fraction,
        }
        if self.f1 is not None and self.monosemanticity is not None:
            values |= {
                "f1": self.f1.overall,
                "best_f1": self.f1.best.mean(),
                "purity": self.f1.purity,
                "monosemanticity": self.monosemanticity.mean,
                "monosemanticity_std": self.monosemanticity.std,
            }
            for i, name in enumerate(concept_names):
                values |= {
                    f"f1/{name}": self.f1.top_n_mean[i],
                    f"f1_std/{name}": self.f1.top_n_std[i],
                    f"best_f1/{name}": self.f1.best[i],
                    f"l0/{name}": self.l0.per_concept[i],
                    f"nmse/{name}": self.nmse.per_concept[i],
                }
        if self.code_similarity is not None and self.latent_similarity is not None:
            values |= {
                "stable_rank_codes": self.code_similarity.stable_rank,
                "stable_rank_latents": self.latent_similarity.stable_rank,
            }
            if concept_names:
                values["cross_concept_cosine"] = self.latent_similarity.cross_concept
        if self.discovery is not None:
            values |= {"discovery_rand": self.discovery.adjusted_rand, "discovery_clusters": self.discovery.n_clusters}
        return {key: value.float() for key, value in values.items()}


class RecoveryMetrics(nn.Module):
    """The metrics of one SAE, as a module so that they move with it.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        n_concepts: Number of concepts; 0 for unlabelled data.
        top_n: Over how many latents the F1 of a concept is averaged.
        with_similarity: Whether to hold the `d_sae x d_sae` moments.
        discovery_samples: How many samples to cluster.
    """

    def __init__(
        self, d_in: int, d_sae: int, n_concepts: int, top_n: int, with_similarity: bool, discovery_samples: int
    ) -> None:
        super().__init__()
        self.labelled = labelled = n_concepts > 0
        self.l0 = L0(n_concepts)
        self.nmse = NormalizedMSE(d_in, n_concepts)
        self.dead = DeadLatents(d_sae)
        self.f1 = ConceptF1(d_sae, n_concepts, min(top_n, d_sae)) if labelled else None
        self.monosemanticity = Monosemanticity(d_sae, n_concepts) if labelled else None
        self.code_similarity = CodeSimilarity(d_sae, n_concepts) if with_similarity else None
        self.latent_similarity = LatentSimilarity(d_sae, n_concepts) if with_similarity else None
        self.discovery = ConceptDiscovery(d_sae, n_concepts, discovery_samples) if labelled else None
        self._discovers = False

    def reset(self) -> None:
        """Forget everything."""
        self._discovers = False
        for metric in self.children():
            metric.reset()  # type: ignore[operator]

    def update(self, batch: ActivationBatch, evaluation: Evaluation, discover: bool) -> None:
        """Take in one batch."""
        x, (x_hat, codes, _), _ = evaluation
        concepts = batch.concepts
        if (
            not self.labelled
        ):  # data without names of concepts may have labels, of which it is not known how many there are
            concepts = torch.full((len(x),), -1, device=x.device)
        # known on every process, also where its share of the batch is empty: all of them have to compute
        self._discovers = self.discovery is not None and discover and concepts.ndim == 1
        if len(x) == 0:
            return
        self.l0.update(codes, concepts)
        self.nmse.update(x, x_hat, concepts)
        self.dead.update(codes)
        for metric in (self.f1, self.monosemanticity, self.code_similarity, self.latent_similarity):
            if metric is not None:
                metric.update(codes, concepts)
        if self.discovery is not None and self._discovers:
            self.discovery.update(codes, concepts, batch.activations)

    def compute(self) -> Recovery:
        """Combine all batches and processes; every process must call it."""
        return Recovery(
            l0=self.l0.compute(),
            nmse=self.nmse.compute(),
            dead=self.dead.compute(),
            f1=self.f1.compute() if self.f1 is not None else None,
            monosemanticity=self.monosemanticity.compute() if self.monosemanticity is not None else None,
            code_similarity=self.code_similarity.compute() if self.code_similarity is not None else None,
            latent_similarity=self.latent_similarity.compute() if self.latent_similarity is not None else None,
            discovery=self.discovery.compute() if self.discovery is not None and self._discovers else None,
        )


class ConceptRecovery(RunCallback):
    """Measures in validation and test what each SAE recovers, and logs it as `val/...` and `test/...`.

    L0, normalised MSE, dead latents and stable ranks always; F1, monosemanticity and values per concept where the
    data has labels. `results` holds the last measurement of each SAE by name.

    Args:
        top_n: Over how many of the best latents the F1 of a concept is averaged, at least 1.
        similarity_max_latents: Stable ranks and similarities need memory and time that grow with the square of the
            number of latents (and eigenvalues with its cube); above this number they are left out, with a message.
        discovery_samples: How many samples are clustered in test to score concept discovery, at least 2.

    Raises:
        ValueError: If an argument is out of range.
    """

    key = "recovery"
    serves = SAEModule

    def __init__(self, top_n: int = 5, similarity_max_latents: int = 1024, discovery_samples: int = 1024) -> None:
        for name, value, least in (("top_n", top_n, 1), ("discovery_samples", discovery_samples, 2)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but is {value}")
        self.top_n = top_n
        self.similarity_max_latents = similarity_max_latents
        self.discovery_samples = discovery_samples
        self.results: dict[str, Recovery] = {}
        self.concept_names: list[str] = []
        self._told = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Hang the metrics into the module, before it moves to its device."""
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, SAEModule)
        data = data_of(trainer)
        self.concept_names = list(data.concept_names) if isinstance(data, HasConcepts) else []
        large = {name or "the SAE" for name, sae in pl_module.saes().items() if sae.d_sae > self.similarity_max_latents}
        if large:
            rank_zero_info(
                f"Stable ranks and similarities are left out for {', '.join(sorted(large))}: more latents than "
                f"recovery.similarity_max_latents = {self.similarity_max_latents}."
            )
        pl_module.recovery_metrics = nn.ModuleList(
            RecoveryMetrics(
                sae.d_in,
                sae.d_sae,
                len(self.concept_names),
                self.top_n,
                sae.d_sae <= self.similarity_max_latents,
                self.discovery_samples,
            )
            for sae in pl_module.saes().values()
        )

    def _metrics(self, pl_module: pl.LightningModule) -> dict[str, RecoveryMetrics]:
        assert isinstance(pl_module, SAEModule)
        return dict(zip(pl_module.saes(), pl_module.recovery_metrics, strict=True))  # type: ignore[arg-type]

    def _reset(self, pl_module: pl.LightningModule) -> None:
        for metrics in self._metrics(pl_module).values():
            metrics.reset()

    def _update(self, pl_module: pl.LightningModule, outputs: Any, batch: ActivationBatch, discover: bool) -> None:
        if not self.concept_names and not self._told and _has_labels(batch.concepts):
            self._told = True
            data = type(data_of(pl_module.trainer)).__name__
            rank_zero_warn(
                f"the batches of {data} hold labels, but it has no `concept_names` (a list, in their order), so that "
                "F1 and monosemanticity are left out"
            )
        for name, metrics in self._metrics(pl_module).items():
            metrics.update(batch, outputs[name], discover)

    def _compute(self, pl_module: pl.LightningModule, stage: Stage) -> None:
        self.results = {}
        for name, metrics in self._metrics(pl_module).items():
            self.results[name] = recovery = metrics.compute()
            for key, value in recovery.scalars(self.concept_names).items():
                if key != "l0":  # the module logs it already
                    pl_module.log(log_key(name, stage, key), value)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start anew."""
        self._reset(pl_module)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start anew."""
        self._reset(pl_module)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in what the module made of a batch."""
        self._update(pl_module, outputs, batch, discover=False)

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in what the module made of a batch."""
        self._update(pl_module, outputs, batch, discover=True)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute and log."""
        self._compute(pl_module, "val")
        if trainer.sanity_checking:  # a few batches say nothing
            self.results = {}

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compute and log."""
        self._compute(pl_module, "test")


def _has_labels(concepts: Tensor) -> bool:
    return bool(concepts.any()) if concepts.dtype == torch.bool else bool((concepts >= 0).any())
