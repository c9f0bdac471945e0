"""Precision checks: reject 16-true, warn where bf16-true rounds inputs."""

import lightning.pytorch as pl
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

_TOLERATED = 0.03  # rounding of the inputs, as a share of their spread: about a thousandth of their variance


def require_trainable(trainer: pl.Trainer) -> None:
    """Raise a ValueError if the trainer's precision is 16-true, in which no SAE can be trained."""
    if trainer.precision == "16-true":
        raise ValueError(
            "trainer.precision must not be '16-true': gradients and Adam's moments of a matrix vanish in float16, "
            "below 6e-8, and nothing scales them. Use 'bf16-mixed', '16-mixed' (on an accelerator) or 'bf16-true'"
        )


def require_in_range(trainer: pl.Trainer, name: str, loss: Tensor) -> None:
    """Raise a ValueError if the loss shows that float16 overflowed in the forward pass.

    The scaler would go on for ever, for it takes this for gradients that are too large, and skips the step.
    """
    if trainer.precision == "16-mixed" and not bool(loss.isfinite()):
        raise ValueError(
            f"the training loss{f' of {name}' if name else ''} must be finite, but is {loss.item()} with "
            "trainer.precision '16-mixed': a product exceeds float16's largest number, 65504. Use 'bf16-mixed', which "
            "has float32's range"
        )


def warn_of_rounded_inputs(trainer: pl.Trainer, x: Tensor) -> None:
    """Warn where raw inputs `(n, d_in)` lie so far from zero that a "true" half precision loses what differs in them.

    Lightning rounds batches before anything else sees them; mixed precision does not.
    """
    if trainer.precision != "bf16-true":
        return
    lost = (x - x.bfloat16()).float().square().mean().sqrt()
    spread = x.float().var(0, correction=0).mean().sqrt()
    if bool(lost > _TOLERATED * spread):
        rank_zero_warn(
            f"trainer.precision 'bf16-true' rounds raw activations by {(lost / spread).item():.1%} of their spread, "
            "since they lie far from zero: use 'bf16-mixed', which standardizes them in float32, or subtract their mean"
        )
