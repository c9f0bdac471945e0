"""Resampling of dead latents."""

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.modules.member import Member
from sae_lightning.modules.module import SAEModule, log_key
from sae_lightning.modules.optimizers import own_optimizer
from sae_lightning.modules.sharding import reshard
from sae_lightning.nn import Decoder, Encoder, Projection, SAEOutput
from sae_lightning.nn.resampling import require_resamplable, resample
from sae_lightning.nn.rows import set_rows


class ResampleDeadLatents(RunCallback):
    r"""Puts dead latents at samples that the SAE explains badly, so that they fire.

    Every `every_n_steps` steps, each latent that has not fired for `dead_after` batches takes a sample of the current
    batch, drawn with a probability proportional to the square of its squared error. A prototype moves to the sample;
    an affine row points along the sample's residual, with `encoder_norm` times the mean norm of the live ones. The
    encoder is then strengthened until the latent fires on its sample, and the atom explains what is missing there
    (`sae_lightning.nn.resampling.resample` has the rules). Biases and offsets start from the mean of the live ones,
    thresholds from their initial value, and the optimizer's moments of all these from zero.

    No two latents take equal samples, since they would stay alike: where more are dead than the batch has different
    samples, those that were silent for longest go first, and the others wait for the next round.

    A resampled latent that fires counts as having fired in this batch: aux-k does not train it until it is silent for
    aux-k's own `dead_after` batches again. One that cannot be made to fire keeps its count, so that aux-k
    still trains it and the next round takes it again.

    Args:
        every_n_steps: Steps between two rounds, at least 1.
        dead_after: Training batches without firing after which a latent is dead, at least 1.
        until_step: Last step of a round; None for all of training.
        encoder_norm: Norm of a resampled affine row before it is strengthened, as a share of the mean of the live ones,
            positive.

    Raises:
        ValueError: If an argument is out of range.

    References:
        After Bricken et al. (2023), Towards Monosemanticity.
    """

    serves = SAEModule

    def __init__(
        self, every_n_steps: int = 500, dead_after: int = 100, until_step: int | None = None, encoder_norm: float = 0.2
    ) -> None:
        for name, value in {"every_n_steps": every_n_steps, "dead_after": dead_after}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        if not encoder_norm > 0:
            raise ValueError(f"encoder_norm must be positive, but is {encoder_norm}")
        self.every_n_steps = every_n_steps
        self.dead_after = dead_after
        self.until_step = until_step
        self.encoder_norm = encoder_norm
        self._last_round = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Reject parts without a way of resampling, and a strategy whose parameters cannot be written by latent.

        Raises:
            ValueError: If a part of an SAE does not say how its latents are resampled, or with FSDPStrategy.
        """
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        assert isinstance(pl_module, SAEModule)
        for sae in pl_module.saes().values():
            require_resamplable(sae.sae)
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ValueError(
                "ResampleDeadLatents cannot work with FSDPStrategy, which holds no rows of latents: use "
                "ModelParallelStrategy with tensor_parallel_size = 1, which shards by FSDP too"
            )

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Skip the round of the step at which a run resumes: it was made before the checkpoint."""
        self._last_round = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Resample after the optimizer's step."""
        assert isinstance(pl_module, SAEModule)
        step = trainer.global_step
        if step == self._last_round:  # with accumulated gradients, several batches end at one step
            return
        self._last_round = step
        if step % self.every_n_steps or (self.until_step is not None and step > self.until_step):
            return
        x = pl_module.interleaved(batch.activations)  # in one order, so that every rank resamples alike
        target = None if batch.target is None else pl_module.interleaved(batch.target)
        optimizer = trainer.optimizers[0]
        counts = {}
        for name, sae in pl_module.saes().items():
            count = self.resample(sae, x, step, own_optimizer(optimizer, name), target)
            counts[log_key(name, "train", "resampled_latents")] = float(count)
        # not through `pl_module.log`, which would repeat the counts in later rows until a resumed run forgets them
        for logger in trainer.loggers:
            logger.log_metrics(counts, step=step - 1)

    @torch.no_grad()
    def resample(
        self, sae: Member, x: Tensor, step: int, optimizer: torch.optim.Optimizer, target: Tensor | None = None
    ) -> int:
        """Resample the dead latents of one SAE from raw inputs `(n, d_in)` and targets; returns how many there were.

        Raises:
            ValueError: If a part of the SAE does not say how its latents are given a new start.
        """
        core = sae.sae
        parts = _parts(sae)
        require_resamplable(core)
        alive = core.batches_silent < self.dead_after
        n_dead = int((~alive).sum())
        if n_dead == 0:
            return 0
        distinct, counts, wanted = _distinct(x, target if sae.target_shape is not None else None)
        longest = core.batches_silent.argsort(descending=True, stable=True)
        dead = longest[: min(n_dead, len(distinct))].sort().values

        def evaluate() -> SAEOutput:
            out = sae.evaluate(distinct, wanted).out
            reshard(sae)
            return out

        generator = torch.Generator().manual_seed((torch.initial_seed() + step) % 2**64)
        x, target = core.standardize_pair(distinct, wanted)
        fired = resample(
            core, dead, alive, x, counts, evaluate, self.encoder_norm, generator, None if wanted is None else target
        )
        for part in parts:
            parameters = dict(part.named_parameters())
            for name in part.rows_of_latents:
                _forget(optimizer, parameters.get(name), dead)
        core.batches_silent[dead[fired]] = 0
        return len(dead)


def _distinct(x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Distinct samples, how often each occurs, and their targets."""
    if target is None:
        return *torch.unique(x, dim=0, return_counts=True), None
    pairs, counts = torch.unique(torch.cat([x, target], dim=-1), dim=0, return_counts=True)
    return pairs[:, : x.shape[-1]], counts, pairs[:, x.shape[-1] :]


def _parts(sae: Member) -> tuple[Encoder, Projection, Decoder]:
    return sae.sae.encoder, sae.sae.projection, sae.sae.decoder


def _forget(optimizer: torch.optim.Optimizer, parameter: Tensor | None, latents: Tensor) -> None:
    """Zero what an optimizer remembers of some latents' rows of a parameter."""
    if parameter is None:
        return
    for state in optimizer.state.get(parameter, {}).values():
        if isinstance(state, Tensor) and state.shape == parameter.shape:
            set_rows(state, latents, 0.0)
