"""Scalars of training that tell how an SAE is doing."""

import lightning.pytorch as pl
from torch import Tensor

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.modules.module import SAEModule, log_key
from sae_lightning.modules.optimizers import own_optimizer


class TrainingDynamics(RunCallback):
    """Logs learning rate, lambda, thresholds and silent latents as `train/...` whenever the trainer logs.

    Args:
        silent_after: A latent counts as silent after this many training batches in which it never fired, at least 1.

    Raises:
        ValueError: If `silent_after` is below 1.
    """

    key = "dynamics"
    serves = SAEModule

    def __init__(self, silent_after: int = 20) -> None:
        if silent_after < 1:
            raise ValueError(f"silent_after must be at least 1, but is {silent_after}")
        self.silent_after = silent_after

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: object) -> None:
        """Log before the step, at the steps at which the module logs."""
        assert isinstance(pl_module, SAEModule)
        if not pl_module.is_logging_step():
            return
        for name, sae in pl_module.saes().items():
            silent = (sae.sae.batches_silent >= self.silent_after).float().mean()
            scalars: dict[str, Tensor] = {**sae.sae.dynamics(), "silent_latents": silent}
            for key, value in scalars.items():
                pl_module.log(log_key(name, "train", key), value)
            lr = own_optimizer(trainer.optimizers[0], name).param_groups[0]["lr"]
            pl_module.log(log_key(name, "train", "lr"), float(lr))
