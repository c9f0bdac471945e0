"""Warns where training has diverged although every loss is finite, and keeps the checkpoint from before."""

import shlex
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.callbacks.checkpoint import RunCheckpoint
from sae_lightning.modules.module import SAEModule
from sae_lightning.modules.run import RunModule


class Diverged(NamedTuple):
    """Where one SAE, or another model, was found to have diverged."""

    step: int
    """Training step, counted from 1."""
    error: float
    """Its error there, as `Divergence` defines it."""
    checkpoint: str | None
    """The newest checkpoint from before; None if there is none."""


class Divergence(RunCallback):
    r"""Warns once for each SAE whose training has diverged, and has the newest checkpoint from before kept.

    The error of an SAE is relative to that of reconstructing nothing, the error of another model is its loss relative
    to that of the first step. An SAE has diverged where its error exceeds `limit` times both 1 and its lowest error so
    far (untrained SAEs may begin at some hundreds):

    $$ e_t = \mathrm{mean} \|\tilde x - \hat x\|^2 / \mathrm{mean} \|\tilde x\|^2,
       \qquad e_t > limit \cdot \max(1, \min_{s < t} e_s) $$

    where the denominator is at least `d_in`, its mean over all data, if inputs are standardized.

    Errors are measured at the first step, at steps that are logged, at the last step of an epoch, and after a
    validation; other steps cost nothing. Training continues, since other members of a comparison may be sound, and
    `results.json` lists what has diverged.

    Args:
        limit: How many times the error of reconstructing nothing counts as diverged, above 1; None: nothing does.

    Attributes:
        found: What has diverged, by SAE.

    Raises:
        ValueError: If `limit` is not above 1.
    """

    key = "divergence"

    def __init__(self, limit: float | None = 10.0) -> None:
        if limit is not None and not limit > 1:
            raise ValueError(f"limit must be above 1, but is {limit}")
        self.limit = limit
        self.found: dict[str, Diverged] = {}
        self._lowest: dict[str, float] = {}
        self._first_loss: float | None = None  # of a model that has no error relative to reconstructing nothing
        self._sound = 0  # the last step whose weights were measured before anything diverged
        self._step = 0

    @property
    def state_key(self) -> str:
        """One key whatever the limit."""
        return "Divergence"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know, in plain values."""
        found = {name: diverged._asdict() for name, diverged in self.found.items()}
        return {"found": found, "lowest": dict(self._lowest), "first_loss": self._first_loss, "sound": self._sound}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what was known at the checkpoint."""
        try:
            self.found = {name: Diverged(**diverged) for name, diverged in state_dict["found"].items()}
            self._lowest = dict(state_dict["lowest"])
            self._first_loss, self._sound = state_dict["first_loss"], state_dict["sound"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"the checkpoint does not say what has diverged: {error!r}") from error

    # ------------------------------------------------------------------ measurement

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Protect the sound checkpoint of the run that is resumed, and repeat the warning if it has diverged."""
        self._step = trainer.global_step
        self._protect(trainer)
        for name in self.found:
            self._warn(name)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the errors of the step, which are those of the weights before it."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step == self._step:  # gradients are accumulated
            return
        self._step = step
        due = not self._lowest or trainer.is_last_batch or step == trainer.max_steps or (every and step % every == 0)
        if due and trainer.is_global_zero:
            errors = pl_module.relative_errors(batch) if isinstance(pl_module, RunModule) else {}
            self._judge(trainer, errors or {"": self._relative(outputs["loss"])}, step, step - 1)

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Measure the errors of SAEs on the first batch of a validation: those of the weights after the last step."""
        first = batch_idx == 0 and trainer.state.fn == "fit" and not trainer.sanity_checking
        if first and trainer.is_global_zero and isinstance(pl_module, SAEModule) and len(batch.activations):
            self._judge(trainer, pl_module.relative_errors(batch), trainer.global_step, trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the loss of other models on validation data."""
        loss = trainer.callback_metrics.get("val/loss")
        if self._first_loss is not None and loss is not None and trainer.state.fn == "fit" and trainer.is_global_zero:
            self._judge(trainer, {"": self._relative(loss)}, trainer.global_step, trainer.global_step)

    def _relative(self, loss: Tensor) -> Tensor:
        if self._first_loss is None:
            self._first_loss = float(loss)
        # ratios of losses that may be negative mean nothing
        return loss / self._first_loss if self._first_loss > 0 else torch.ones_like(loss)

    # ------------------------------------------------------------------ judgment

    def _judge(self, trainer: pl.Trainer, errors: dict[str, Tensor], step: int, weights: int) -> None:
        """Compare errors with the limit.

        Args:
            trainer: The trainer.
            errors: Scalars by SAE.
            step: The step at which they were measured.
            weights: The number of steps after which the weights had these errors.
        """
        checkpoint = _run_checkpoint(trainer)
        for name, error in zip(errors, torch.stack(list(errors.values())).tolist(), strict=True):
            lowest = self._lowest.setdefault(name, error)
            above = self.limit is not None and error > self.limit * max(1.0, lowest)
            if name not in self.found and above:
                path = None if checkpoint is None else checkpoint.newest_sound()
                self.found[name] = Diverged(step, error, None if path is None else str(path))
                self._warn(name)
            self._lowest[name] = min(lowest, error)
        if not self.found:
            self._sound = weights
            self._protect(trainer)

    def _warn(self, name: str) -> None:
        step, error, path = self.found[name]
        what, unit = ("error", "reconstructing nothing") if self._first_loss is None else ("loss", "the first step")
        how = (
            "No checkpoint is from before: start a new run"
            if path is None
            else f"Resume from the last checkpoint before, --ckpt_path {shlex.quote(path)} (it is kept),"
        )
        rank_zero_warn(
            f"{f'SAE {name!r}' if name else 'the model'} has diverged: at step {step} its {what} is {error:.3g} times "
            f"that of {unit}. {how} with a lower learning rate (lr of its optimizer), or with clipped gradients "
            "(--trainer.gradient_clip_val 1)"
        )

    def _protect(self, trainer: pl.Trainer) -> None:
        checkpoint = _run_checkpoint(trainer)
        if checkpoint is not None:
            checkpoint.sound_until = self._sound


def _run_checkpoint(trainer: pl.Trainer) -> RunCheckpoint | None:
    return next((c for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoint)), None)
