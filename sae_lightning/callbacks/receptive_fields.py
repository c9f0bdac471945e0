"""Receptive fields of two-dimensional data."""

import lightning.pytorch as pl
import torch

from sae_lightning.callbacks.base import RunCallback, found
from sae_lightning.callbacks.data import HasSamples, data_of
from sae_lightning.callbacks.publish import publish
from sae_lightning.callbacks.recovery import ConceptRecovery
from sae_lightning.modules.member import Member
from sae_lightning.modules.module import SAEModule, log_key
from sae_lightning.modules.sharding import with_full_parameters
from sae_lightning.plotting import receptive_fields


class ReceptiveFields(RunCallback):
    """Draws, for each concept of 2-D data, where its best latent fires: field, boundary, prototype or direction.

    Does nothing for data of another dimension, or without labels.

    Args:
        resolution: Points of the grid along each axis, at least 2.
        max_saes: Above this number of SAEs nothing is drawn.

    Raises:
        ValueError: If `resolution` is below 2.
    """

    key = "receptive_fields"
    serves = SAEModule
    needs = (ConceptRecovery,)

    def __init__(self, resolution: int = 200, max_saes: int = 8) -> None:
        if resolution < 2:
            raise ValueError(f"resolution must be at least 2, but is {resolution}")
        self.resolution = resolution
        self.max_saes = max_saes

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw on rank zero."""
        data = data_of(trainer)
        recovery = found(trainer, ConceptRecovery)
        if not trainer.loggers or not recovery.concept_names:
            return
        assert isinstance(pl_module, SAEModule)
        if pl_module.d_in != 2 or len(pl_module.saes()) > self.max_saes or not isinstance(data, HasSamples):
            return
        samples = data.split("test")
        if samples.activations.ndim != 2:  # of several layers
            return
        points = samples.activations.float()
        low, high = points.amin(0), points.amax(0)
        margin = 0.1 * (high - low)
        low, high = low - margin, high + margin
        axes = [torch.linspace(float(low[i]), float(high[i]), self.resolution) for i in (0, 1)]
        grid = torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1)
        extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
        for name, sae in pl_module.saes().items():
            f1 = recovery.results[name].f1
            assert f1 is not None
            latents = f1.best_latent.clamp_min(0)
            best = f1.best.tolist()
            marks, origin = self._marks(pl_module, sae, latents)
            with with_full_parameters(trainer, writeback=False):
                codes = sae.encode(grid.to(sae.device))[..., latents].permute(2, 0, 1)
            if not trainer.is_global_zero:
                continue
            figure = receptive_fields(
                codes,
                extent,
                points,
                samples.concepts,
                recovery.concept_names,
                origin=origin,
                titles=[
                    f"{concept}: latent {latent}, F1 {value:.2f}"
                    for concept, latent, value in zip(recovery.concept_names, latents.tolist(), best, strict=True)
                ],
                **marks,  # type: ignore[arg-type]
            )
            publish(trainer, figure, log_key(name, "test", "receptive_fields"))

    @staticmethod
    def _marks(
        module: SAEModule, sae: Member, latents: torch.Tensor
    ) -> tuple[dict[str, torch.Tensor], tuple[float, float]]:
        """Prototypes, or directions and where they start, in raw units."""
        core = sae.sae
        weight = module.full_tensor(core.encoder.weight)[latents]
        if core.encoder.rows_are == "prototypes":
            return {"prototypes": core.standardizer.inverse(weight)}, (0.0, 0.0)
        center = core.center
        apex = torch.zeros(2, device=weight.device) if center is None else module.full_tensor(center)
        x, y = core.standardizer.inverse(apex).tolist()
        return {"directions": weight}, (x, y)
