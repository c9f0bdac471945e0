"""Concept recovery: measure in validation and test what each SAE finds."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.callbacks.data import HasConcepts, data_of
from sae_lightning.callbacks.recovery_metrics import Problem, Recovery, RecoveryMetrics, Stage
from sae_lightning.data.batch import ActivationBatch
from sae_lightning.modules.module import SAEModule, log_key


class ConceptRecovery(RunCallback):
    """Measures in validation and test what each SAE recovers, and logs it as `val/...` and `test/...`.

    L0, normalized MSE, dead latents and stable ranks always; F1, monosemanticity and values per concept where the
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
        """Register the metrics as submodules, before the module moves to its device."""
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
                Problem(
                    sae.sae.d_out,
                    sae.d_sae,
                    len(self.concept_names),
                    self.top_n,
                    sae.d_sae <= self.similarity_max_latents,
                    self.discovery_samples,
                )
            )
            for sae in pl_module.saes().values()
        )

    def _metrics(self, pl_module: pl.LightningModule) -> dict[str, RecoveryMetrics]:
        assert isinstance(pl_module, SAEModule)
        return dict(zip(pl_module.saes(), pl_module.recovery_metrics, strict=True))  # type: ignore[arg-type]

    def _reset(self, pl_module: pl.LightningModule) -> None:
        for metrics in self._metrics(pl_module).values():
            metrics.reset()

    def _update(self, pl_module: pl.LightningModule, outputs: Any, batch: ActivationBatch, stage: Stage) -> None:
        if not self.concept_names and not self._told and _has_labels(batch.concepts):
            self._told = True
            data = type(data_of(pl_module.trainer)).__name__
            rank_zero_warn(
                f"the batches of {data} hold labels, but it has no `concept_names` (a list, in their order), so that "
                "F1 and monosemanticity are left out"
            )
        for name, metrics in self._metrics(pl_module).items():
            metrics.update(batch, outputs[name], stage)

    def _compute(self, pl_module: pl.LightningModule, stage: Stage) -> None:
        self.results = {}
        for name, metrics in self._metrics(pl_module).items():
            self.results[name] = recovery = metrics.compute()
            for key, value in recovery.scalars(self.concept_names).items():
                if key != "l0":  # the module logs it already
                    pl_module.log(log_key(name, stage, key), value)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the metrics."""
        self._reset(pl_module)

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the metrics."""
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
        self._update(pl_module, outputs, batch, "val")

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
        self._update(pl_module, outputs, batch, "test")

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
