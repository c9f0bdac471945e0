"""What is about to be trained, in a few lines."""

import lightning.pytorch as pl

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.modules.module import SAEModule


class ModelOverview(RunCallback):
    """Prints the class, size and number of parameters of each SAE (or other model) before training."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print before training."""
        if trainer.is_global_zero:
            print("\n".join(overview(pl_module)), flush=True)


def overview(module: pl.LightningModule) -> list[str]:
    """A line for each SAE, or one for another model.

    Args:
        module: What is trained.
    """
    if not isinstance(module, SAEModule):
        return [f"{type(module).__name__}: {_parameters(module)}"]
    saes = module.saes()
    width = max(map(len, saes))
    lines = [
        f"{name:{width}}  {type(sae).__name__}: {sae.d_sae:,} latents, d_in {sae.d_in:,}, {_parameters(sae)}".strip()
        for name, sae in saes.items()
    ]
    return lines if len(saes) == 1 else [f"Comparison of {len(saes)} SAEs: {_parameters(module)}", *lines]


def _parameters(module: pl.LightningModule) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,} parameters"
