"""Warns where training has diverged though every loss is finite, and keeps the checkpoint from before."""

from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sae_lightning.callbacks.checkpoint import RunCheckpoint
from sae_lightning.modules.module import SAEModule, log_key
from sae_lightning.modules.run import RunModule


class Diverged(NamedTuple):
    """Where one SAE, or another model, was found to have diverged."""

    step: int
    """Training step, counted from 1."""
    error: float
    """Its error there, as `Divergence` measures it."""
    checkpoint: str | None
    """The newest checkpoint from before; None if there is none."""


class Divergence(pl.Callback):
    r"""Warns once for each SAE whose training has diverged, and has the last checkpoint from before kept.

    An SAE has diverged where its error at step $t$, relative to that of reconstructing nothing, exceeds `limit` times
    both 1 and its lowest one so far (untrained SAEs may begin at some hundreds):

    $$ e_t = \mathrm{mean} \|\tilde x - \hat x\|^2 / \mathrm{mean} \|\tilde x\|^2,
       \qquad e_t > limit \cdot \max(1, \min_{s < t} e_s) $$

    Other models have diverged where the loss exceeds `limit` times that of the first step. Errors are taken in the first
    step, in steps that are logged, in the last one of an epoch, and from `val/nmse` of a validation. A validation in
    which no latent of an SAE fires is warned of as well.

    Training goes on, since other members of a comparison may be well, and ends with status 0; the end repeats the
    warning, and `results.json` has it. Whatever `RunCheckpoint` keeps otherwise, it keeps the newest checkpoint whose
    weights were seen to be sound. No step waits for an accelerator: errors of a step are read when the next one begins.

    Args:
        limit: How many times the error of learning nothing counts as diverged, above 1; infinity switches this off.

    Raises:
        ValueError: If `limit` is not above 1.
    """

    def __init__(self, limit: float = 10.0) -> None:
        if not limit > 1:
            raise ValueError(f"limit must be above 1, but is {limit}")
        self.limit = limit
        self.found: dict[str, Diverged] = {}
        self._usual: dict[str, float] = {}  # the lowest error so far, or the first loss
        self._last: dict[str, float] = {}
        self._dead: set[str] = set()
        self._sound = 0  # the last step whose weights were seen to be sound
        self._pending: tuple[Any, dict[str, Tensor], float, int] | None = None

    @property
    def state_key(self) -> str:
        """One key whatever the limit."""
        return "Divergence"

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must know, in plain values."""
        found = {name: diverged._asdict() for name, diverged in self.found.items()}
        return {"usual": dict(self._usual), "found": found, "sound": self._sound}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with what was known."""
        self._usual = dict(state_dict["usual"])
        self.found = {name: Diverged(**diverged) for name, diverged in state_dict["found"].items()}
        self._sound = state_dict["sound"]

    # ------------------------------------------------------------------ steps

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Tell which checkpoints of an earlier part of the run are sound."""
        self._vouch(trainer)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the step before on an accelerator, before its checkpoint is written."""
        self._settle(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure the errors in steps that are logged, in the first one, and in the last one of an epoch."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = (every and step % every == 0) or step == trainer.max_steps or trainer.is_last_batch
        if not trainer.is_global_zero or not (due or not self._usual):
            return
        errors, least = pl_module.relative_errors(batch) if isinstance(pl_module, RunModule) else {}, 1.0
        if not errors:
            errors, least = {"": outputs["loss"].detach()}, 0.0
        device = next(iter(errors.values())).device
        if device.type == "cpu":
            self._pending = None, errors, least, step
            self._settle(trainer)
            return
        values = dict(zip(errors, torch.stack(list(errors.values())).to("cpu", non_blocking=True), strict=True))
        done = torch.Event(device=device)
        done.record()
        self._pending = done, values, least, step

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the errors of a validation, and for SAEs all of whose latents are dead."""
        if trainer.state.fn != "fit" or trainer.sanity_checking or not isinstance(pl_module, SAEModule):
            return
        if not trainer.is_global_zero:
            return
        self._settle(trainer)
        step, metrics = trainer.global_step, trainer.callback_metrics
        keys = {name: log_key(name, "val", "nmse") for name in pl_module.saes()}
        errors = {name: float(metrics[key]) for name, key in keys.items() if key in metrics}
        if errors:
            self._judge(trainer, errors, 1.0, step, step)
        for name in pl_module.saes():
            dead = metrics.get(log_key(name, "val", "dead_latents"))
            if dead is not None and dead >= 1 and name not in self._dead:
                self._dead.add(name)
                rank_zero_warn(
                    f"all latents of {_called(name)} are dead: none fires in the validation after step {step}"
                )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the last step on an accelerator."""
        self._settle(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Repeat in one line what has diverged."""
        if self.found and trainer.is_global_zero:
            last = {name: self._last.get(name, diverged.error) for name, diverged in self.found.items()}
            where = [f"{_called(n)} at step {d.step} (last error {last[n]:.3g})" for n, d in self.found.items()]
            rank_zero_warn(f"training has ended, but has diverged: {', '.join(where)}")

    # ------------------------------------------------------------------ judgement

    def _settle(self, trainer: pl.Trainer) -> None:
        if self._pending is None:
            return
        (done, errors, least, step), self._pending = self._pending, None
        if done is not None:
            done.synchronize()
        self._judge(trainer, {name: float(error) for name, error in errors.items()}, least, step, step - 1)

    def _judge(self, trainer: pl.Trainer, errors: dict[str, float], least: float, step: int, weights: int) -> None:
        """Compare errors with the limit.

        Args:
            trainer: The trainer.
            errors: By SAE.
            least: What an SAE that learns nothing has at least, by the meaning of the errors.
            step: The step at which they were measured.
            weights: Steps after which the weights were those that have these errors.
        """
        if not self._usual:  # unless it is the first step, no earlier error is known
            self._usual = {name: error if step <= 1 or not least else least for name, error in errors.items()}
        self._last |= errors
        for name, error in errors.items():
            if name not in self.found and error > self.limit * max(least, self._usual[name]):
                checkpoint = self._checkpoint(trainer)
                path = None if checkpoint is None else checkpoint.newest_sound()
                self.found[name] = Diverged(step, error, None if path is None else str(path))
                rank_zero_warn(self._warning(name, self.found[name], least))
            if least:
                self._usual[name] = min(self._usual[name], error)
        if not self.found:
            self._sound = weights
            self._vouch(trainer)

    def _warning(self, name: str, diverged: Diverged, least: float) -> str:
        usual = self._usual[name]
        measured = (
            f"its error is {diverged.error:.3g} times that of reconstructing nothing, after {usual:.3g} times at best"
            if least
            else f"the loss is {diverged.error:.3g}, after {usual:.3g} at step 1"
        )
        how = (
            "There is no checkpoint from before: start again"
            if diverged.checkpoint is None
            else f"Go on from the last checkpoint before, --ckpt_path {diverged.checkpoint}, which is kept"
        )
        return (
            f"{_called(name)} has diverged: at step {diverged.step} {measured}. {how}, with a lower learning rate or "
            "clipped gradients (--trainer.gradient_clip_val)"
        )

    @staticmethod
    def _checkpoint(trainer: pl.Trainer) -> RunCheckpoint | None:
        return next((c for c in trainer.checkpoint_callbacks if isinstance(c, RunCheckpoint)), None)

    def _vouch(self, trainer: pl.Trainer) -> None:
        checkpoint = self._checkpoint(trainer)
        if checkpoint is not None:
            checkpoint.sound_until = self._sound


def find_divergence(trainer: pl.Trainer) -> Divergence | None:
    """The trainer's Divergence, whose findings are results of the run."""
    return next((c for c in trainer.callbacks if isinstance(c, Divergence)), None)  # type: ignore[attr-defined]


def _called(name: str) -> str:
    return f"SAE {name!r}" if name else "the model"
