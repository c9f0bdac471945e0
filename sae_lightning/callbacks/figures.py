"""Figures of what each SAE recovers."""

import lightning.pytorch as pl
import torch
from torch import Tensor

from sae_lightning.callbacks.base import RunCallback, found
from sae_lightning.callbacks.data import HasDimensions, data_of
from sae_lightning.callbacks.publish import publish
from sae_lightning.callbacks.recovery import ConceptRecovery
from sae_lightning.callbacks.recovery_metrics import Recovery
from sae_lightning.modules.member import Member
from sae_lightning.modules.module import SAEModule, log_key
from sae_lightning.plotting import (
    SweepPoint,
    concept_f1_bars,
    f1_against_l0,
    l0_against_dimension,
    nmse_against_l0,
    order_by_group,
    similarity_heatmap,
    sweep_scalars,
)


def sweep_points(module: SAEModule, results: dict[str, Recovery]) -> list[SweepPoint]:
    """One point per SAE for curves over sparsity: family, strength (k or gamma), L0, scalars, values per concept."""
    points = []
    for name, sae in module.saes().items():
        recovery = results[name]
        scalars = recovery.scalars([])
        keys = ("nmse", "dead_latents", "monosemanticity", "stable_rank_codes", "stable_rank_latents")
        labeled = recovery.f1 is not None
        points.append(
            SweepPoint(
                family=type(sae).__name__,
                strength=strength(sae),
                l0=float(scalars["l0"]),
                f1=recovery.f1.top_n_mean.cpu() if recovery.f1 is not None else torch.empty(0),
                scalars={key: float(scalars[key]) for key in keys if key in scalars},
                l0_per_concept=recovery.l0.per_concept.cpu() if labeled else None,
                nmse_per_concept=recovery.nmse.per_concept.cpu() if labeled else None,
            )
        )
    return points


def strength(sae: Member) -> float:
    """What sets an SAE's sparsity: k where there is one, else gamma."""
    k = sae.sae.projection.at_most()
    return sae.gamma if k is None else k


class RecoveryFigures(RunCallback):
    """Draws F1 per concept, code and latent similarity, and for several SAEs the curves against L0.

    Figures go to TensorBoard and to the run's folder. If the data module has the dimensions of its concepts
    (an attribute `dims`, one number per concept), L0 is drawn against dimension too.

    Args:
        on_validation: Whether to draw in validation too, not only in test.
        max_saes: Above this number of SAEs, the similarity maps of each single one are left out.
    """

    key = "figures"
    serves = SAEModule
    needs = (ConceptRecovery,)

    def __init__(self, on_validation: bool = True, max_saes: int = 8) -> None:
        self.on_validation = on_validation
        self.max_saes = max_saes

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw where that was asked for."""
        if self.on_validation and not trainer.sanity_checking:
            self._draw(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw."""
        self._draw(trainer, pl_module, "test")

    def _draw(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        recovery = found(trainer, ConceptRecovery)
        if not trainer.loggers or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, SAEModule)
        results, names = recovery.results, recovery.concept_names
        if names:
            f1 = {name or type(pl_module).__name__: r.f1 for name, r in results.items() if r.f1 is not None}
            figure = concept_f1_bars(
                {name: r.top_n_mean for name, r in f1.items()},
                names,
                {name: r.top_n_std for name, r in f1.items()},
                title=f"F1 per concept, mean of the {recovery.top_n} best latents",
            )
            publish(trainer, figure, f"{stage}/concept_f1")
        if len(results) <= self.max_saes:
            for name, result in results.items():
                self._draw_similarities(trainer, name, stage, result, names)
        if len(results) > 1:
            points = sweep_points(pl_module, results)
            publish(trainer, sweep_scalars(points), f"{stage}/metrics_against_l0")
            if names:
                publish(trainer, f1_against_l0(points, names), f"{stage}/f1_against_l0")
                publish(trainer, nmse_against_l0(points, names), f"{stage}/nmse_against_l0")
                data = data_of(trainer)
                dims = data.dims if isinstance(data, HasDimensions) else None
                if dims is not None and len(dims) == len(names):
                    publish(trainer, l0_against_dimension(points, dims), f"{stage}/l0_against_dimension")

    @staticmethod
    def _draw_similarities(trainer: pl.Trainer, name: str, stage: str, result: Recovery, names: list[str]) -> None:
        if result.discovery is not None and len(result.discovery.labels):
            codes = torch.nn.functional.normalize(result.discovery.codes, dim=-1)
            figure = similarity_heatmap(
                codes @ codes.T, result.discovery.labels, names, title="Similarity of codes, samples by concept"
            )
            publish(trainer, figure, log_key(name, stage, "code_similarity"))
        if result.latent_similarity is not None and bool(result.latent_similarity.alive.any()):
            similarity = result.latent_similarity
            alive: Tensor = similarity.alive.nonzero().squeeze(-1)
            order = alive[order_by_group(similarity.concept[alive])]
            figure = similarity_heatmap(
                similarity.cosine[order][:, order],
                similarity.concept[order] if names else torch.full_like(order, -1),
                names,
                title="Co-occurrence of latents, by preferred concept",
                items="live latents",
            )
            publish(trainer, figure, log_key(name, stage, "latent_similarity"))
