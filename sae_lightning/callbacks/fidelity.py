"""Downstream fidelity: what the model behind the activations makes of an SAE's reconstructions."""

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import nn

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.callbacks.data import HasHost, data_of
from sae_lightning.data.activations.hosts.spliced import HostBatch
from sae_lightning.data.ranks import data_ranks
from sae_lightning.metrics import Fidelity
from sae_lightning.metrics.functional import FidelityResult
from sae_lightning.modules.module import SAEModule, log_key


class DownstreamFidelity(RunCallback):
    """Puts each SAE's reconstructions into the model that its activations come from, and measures the model's loss.

    In test, where the data offer such a model (their method `host`), it logs as `test/...` the cross-entropy with the
    reconstructions in place, the share of the loss that they recover against zero and mean ablation of the same
    activations, and the divergence of the predictions from the model's own. `results` holds the last measurement of
    each SAE by name.

    Args:
        enabled: Whether to measure it.
    """

    key = "fidelity"
    serves = SAEModule

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.results: dict[str, FidelityResult] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Register the metrics as submodules, before the module moves to its device."""
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, SAEModule)
        self._on = self.enabled and stage == "test" and isinstance(data_of(trainer), HasHost)
        if not self._on:
            return
        # what others reconstruct cannot take the place of their input
        self._spliced = [
            n for n, sae in pl_module.saes().items() if sae.target_shape is None and sae.input_layers is None
        ]
        left_out = sorted(name or "the SAE" for name in pl_module.saes().keys() - set(self._spliced))
        if left_out:
            rank_zero_info(
                f"Fidelity is left out for {', '.join(left_out)}: it needs SAEs that reconstruct their input."
            )
        pl_module.fidelity_metrics = nn.ModuleList(Fidelity() for _ in self._spliced)

    @torch.no_grad()
    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure and log; each process takes its share of the sentences."""
        data = data_of(trainer)
        if not self._on or not isinstance(data, HasHost):
            return
        assert isinstance(pl_module, SAEModule)
        host = data.host()
        metrics = dict(zip(self._spliced, pl_module.fidelity_metrics, strict=True))  # type: ignore[arg-type]
        device = pl_module.device
        for metric in metrics.values():
            metric.reset()
        rank, size = data_ranks(trainer)
        for given in host.batches[rank::size]:
            batch = HostBatch(
                tuple(t.to(device) for t in given.inputs), given.explained.to(device), given.targets.to(device)
            )
            targets = batch.targets[batch.targets >= 0]
            clean = host.logits(batch)
            zero = host.logits(batch, torch.zeros_like)
            mean = host.logits(batch, host.mean.to(device).expand_as)
            for name, metric in metrics.items():
                sae = pl_module.saes()[name]
                spliced = host.logits(batch, lambda x, sae=sae: sae(x).x_hat)  # type: ignore[misc]
                metric.update(spliced, clean, zero, mean, targets)
        self.results = {name: metric.compute() for name, metric in metrics.items()}
        for name, result in self.results.items():
            for key, value in result._asdict().items():
                pl_module.log(log_key(name, "test", f"fidelity/{key}"), value.float())
