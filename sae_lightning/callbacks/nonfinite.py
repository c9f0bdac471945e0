"""Stops a run whose loss becomes NaN or infinite, and saves the batch."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.modules.run import NonfiniteError, RunModule
from sae_lightning.run.files import replacing
from sae_lightning.run.folder import NONFINITE
from sae_lightning.run.loggers import run_folder


class NonfiniteLoss(RunCallback):
    """Ends training where a loss is NaN or infinite, and saves the batch to the run's folder.

    On a CPU the loss is looked at before its gradients are computed, so that the weights stay as they were. On an
    accelerator that would wait for the device at every step: there the answer is copied while the device works on, and
    looked at when the next step begins, before a checkpoint of the step is written. Either way the last checkpoint is
    from before. Only the loss counts: a gradient that overflows under 16-mixed precision is the loss scaler's to skip.

    The file `nonfinite-step=N-rank=R.safetensors` holds raw `activations` and `concepts` (what else a batch consists
    of, by its fields' names), with step, batch, rank and losses as metadata; N counts from 1. Batches that hold NaN
    themselves, which modules refuse, are saved the same way.
    """

    key = "nonfinite"

    def __init__(self) -> None:
        self._batch: tuple[int, Any] = (0, None)
        self._pending: tuple[Any, Tensor, NonfiniteError, dict[str, Tensor]] | None = None

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Look at the step before on an accelerator, and remember the batch.

        Raises:
            NonfiniteError: If a loss was not finite.
        """
        self._settle()
        self._batch = batch_idx, batch

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Look at the losses, at once or when the device is through.

        Raises:
            NonfiniteError: If one is not finite.
        """
        losses = (pl_module.losses if isinstance(pl_module, RunModule) else {}) or {"": loss.detach()}
        if loss.device.type == "cpu":
            if not all(value.isfinite() for value in losses.values()):
                raise _error(self._facts(trainer), losses)
            return
        finite = torch.stack(list(losses.values())).isfinite().all().to("cpu", non_blocking=True)
        done = torch.Event(device=loss.device)
        done.record()
        self._pending = done, finite, self._facts(trainer), losses

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the last step on an accelerator, before its checkpoint is written.

        Raises:
            NonfiniteError: If a loss was not finite.
        """
        self._settle()
        self._batch = 0, None

    def _settle(self) -> None:
        if self._pending is None:
            return
        (done, finite, error, losses), self._pending = self._pending, None
        done.synchronize()  # the forward pass of the step before, which is long over
        if not finite:
            raise _error(error, losses)

    def _facts(self, trainer: pl.Trainer) -> NonfiniteError:
        """The error that is raised if a loss of this step turns out not to be finite."""
        batch_idx, batch = self._batch
        return NonfiniteError("", batch, {"step": str(trainer.global_step + 1), "batch": str(batch_idx)})

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save the batch, and say where it is."""
        if not isinstance(exception, NonfiniteError):
            return
        rank, step = trainer.global_rank, exception.facts.setdefault("step", str(trainer.global_step + 1))
        folder = run_folder(trainer) or Path(trainer.default_root_dir)
        path = folder / f"{NONFINITE}step={step}-rank={rank}.safetensors"
        facts = {"rank": str(rank), "epoch": str(trainer.current_epoch), **exception.facts}
        on = f" (rank {rank})" if trainer.world_size > 1 and f"rank {rank}" not in str(exception) else ""
        try:
            _save(exception.batch, path, facts)
            exception.args = (f"{exception}{on}; the batch is in {str(path)!r}",)
        except OSError as error:
            exception.args = (f"{exception}{on}; the batch cannot be written to {str(path)!r}: {error}",)


def _error(error: NonfiniteError, losses: dict[str, Tensor]) -> NonfiniteError:
    """Name what is not finite."""
    values = {name: value.item() for name, value in losses.items()}
    bad = {name: value for name, value in values.items() if not torch.tensor(value).isfinite()}
    names = ", ".join(f"{value} for {name!r}" if name else f"{value}" for name, value in bad.items())
    error.facts |= {"losses": ", ".join(f"{name}={value}" if name else f"{value}" for name, value in values.items())}
    error.facts |= {"members": ",".join(name for name in bad if name)}
    error.args = (
        f"the loss must be finite, but is {names} at step {error.facts['step']} (batch {error.facts['batch']} of its "
        f"epoch{_largest(error.batch)}); any checkpoint is from before",
    )
    return error


def _largest(batch: Any) -> str:
    """The likely cause, in words: the size of the activations, if the batch has any."""
    x = getattr(batch, "activations", None)
    return f", whose largest activation has magnitude {float(x.abs().max()):.3g}" if x is not None and len(x) else ""


def _save(batch: Any, path: Path, facts: dict[str, str]) -> None:
    from safetensors.torch import save

    fields = batch._asdict() if hasattr(batch, "_asdict") else {"activations": batch}
    tensors = {
        name: value.detach().cpu().clone().contiguous() for name, value in fields.items() if isinstance(value, Tensor)
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(save(tensors, facts))
