"""Figures of the data's geometry and of where SAEs put their rows in it."""

import lightning.pytorch as pl

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.callbacks.data import HasSamples, data_of
from sae_lightning.callbacks.publish import publish
from sae_lightning.modules.module import SAEModule, log_key
from sae_lightning.plotting import principal_components, singular_values


class GeometryFigures(RunCallback):
    """Draws, in test, labeled activations of three dimensions or more, with the prototypes or directions of each SAE.

    Besides the principal components there are the singular values of each concept, which say of what dimension it is.

    Args:
        max_saes: Above this number of SAEs, only the singular values are drawn.
        max_marks: Prototypes or directions that are drawn of an SAE at most.
    """

    key = "geometry"
    serves = SAEModule

    def __init__(self, max_saes: int = 8, max_marks: int = 256) -> None:
        self.max_saes = max_saes
        self.max_marks = max_marks

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw on rank zero."""
        data = data_of(trainer)
        if not trainer.loggers or not isinstance(data, HasSamples):
            return
        assert isinstance(pl_module, SAEModule)
        sample = data.split("test")
        if pl_module.d_in < 3 or len(sample) < 3 or not data.concept_names or sample.concepts.ndim != 1:
            return
        if sample.activations.ndim != 2:  # of several layers
            return
        points, concepts, names = sample.activations.float(), sample.concepts, data.concept_names
        if trainer.is_global_zero:
            publish(trainer, singular_values(points, concepts, names), "test/singular_values")
        if len(pl_module.saes()) > self.max_saes:
            return
        for name, sae in pl_module.saes().items():
            core = sae.sae
            rows = pl_module.full_tensor(core.encoder.weight)[: self.max_marks]
            if not trainer.is_global_zero:
                continue
            kind = core.encoder.rows_are
            if kind == "prototypes":
                rows = core.standardizer.inverse(rows)
            figure = principal_components(
                points,
                concepts,
                names,
                marks=rows,
                marks_are=kind,
                title=f"{name or sae.made_as.__name__}: activations and {kind}",
            )
            publish(trainer, figure, log_key(name, "test", "principal_components"))
