"""The Lightning glue that one SAE and a comparison of several share."""

from abc import ABC, abstractmethod
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import Metric

from sae_lightning.backends import Dense
from sae_lightning.data.batch import ActivationBatch, as_batch
from sae_lightning.data.ranks import data_group, data_ranks
from sae_lightning.modules.allocator import keep_freed_memory
from sae_lightning.modules.clipping import clip_grad_norms, clip_grad_values
from sae_lightning.modules.precision import require_in_range, require_trainable, warn_of_rounded_inputs
from sae_lightning.modules.processes import StepScalars
from sae_lightning.modules.run import NonfiniteError, RunModule
from sae_lightning.modules.sharding import average_gradients, shard, shard_group, with_full_parameters
from sae_lightning.nn import SAEOutput, fires
from sae_lightning.nn.rows import full_tensor

if TYPE_CHECKING:
    from sae_lightning.modules.base import BaseSAE


class Learned(NamedTuple):
    """What one SAE made of one training batch."""

    x: Tensor
    """Standardised inputs, `(batch, d_in)`."""
    out: Any
    """Standardised reconstructions, codes and pre-codes, in the form that the backend works on."""
    terms: dict[str, Tensor]
    """Named scalars: `loss`, `mse` and, where there is one, `regularizer`."""
    backend: Dense
    """What ran the step."""

    def l0(self) -> Tensor:
        """Mean number of latents that fire per sample."""
        return self.backend.count_firing(self.out).double().div(len(self.x)).float()


class Evaluation(NamedTuple):
    """What one SAE made of one batch of validation or test."""

    x: Tensor
    """Standardised inputs, `(batch, d_in)`."""
    out: SAEOutput
    """Standardised reconstructions, codes and pre-codes."""
    terms: dict[str, Tensor]
    """Named scalars: `loss`, `mse` and, where there is one, `regularizer`."""

    def l0(self) -> Tensor:
        """Mean number of latents that fire per sample."""
        return fires(self.out.codes).sum(-1).double().mean()


def log_key(name: str, stage: str, metric: str) -> str:
    """The key under which a metric is logged: `val/f1`, or `spade/val/f1` for a named SAE."""
    return f"{name}/{stage}/{metric}" if name else f"{stage}/{metric}"


class Predictions(NamedTuple):
    """Codes of one batch by SAE, with the batch's concepts."""

    codes: dict[str, Tensor]
    concepts: Tensor


class SAEModule(RunModule, ABC):
    """Trains, evaluates and describes one or several SAEs; knows no formula.

    Args:
        d_in: Size of an activation.
    """

    d_in: int

    def __init__(self, d_in: int) -> None:
        super().__init__()
        self.d_in = d_in
        self._errors: dict[str, Tensor] = {}  # mean squared errors of the step at hand, by SAE

    @abstractmethod
    def saes(self) -> "dict[str, BaseSAE]":
        """The SAEs by name; a single one has the empty name."""

    def backends(self) -> dict[str, str]:
        """By SAE, the name of the backend that runs it on the device where it is."""
        return {name: sae.running(self.device.type).name for name, sae in self.saes().items()}

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str) -> None:
        """Check that data and model fit, and keep DDP from sending buffers: they are equal on all ranks.

        Raises:
            ValueError: If the data's `d_in` is not the model's, SAEs cannot be trained in the trainer's
                precision, or all their parameters are frozen.
        """
        require_trainable(self.trainer)
        if stage == "fit" and not any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError(
                f"{type(self).__name__} must have parameters to train, but all of them are frozen, as those of a "
                "loaded SAE are: call requires_grad_(True) on it"
            )
        data_d_in = getattr(self.trainer.datamodule, "d_in", self.d_in)  # type: ignore[attr-defined]
        if data_d_in != self.d_in:
            raise ValueError(
                f"model.d_in must equal data.d_in, but they are {self.d_in} and {data_d_in} "
                "(leave model.d_in out on the command line: it is linked to the data)"
            )
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in self.named_buffers()]

    def configure_model(self) -> None:
        """Spread the SAEs over processes where the strategy wants that."""
        if self._trainer is None:  # Lightning's load_from_checkpoint calls this too
            return
        shard(self, self.trainer)
        for metric in self.modules():
            if isinstance(metric, Metric):  # processes that see the same samples count them once
                metric.process_group = data_group(self.trainer)

    def on_fit_start(self) -> None:
        """Fit standardisation and initial values to training data, once; a resumed run keeps its own."""
        if self.device.type == "cpu":
            keep_freed_memory()
        names = self.backends().values()
        rank_zero_info(f"Backend: {', '.join(f'{name} ({count})' for name, count in Counter(names).items())}")
        if self.trainer.strategy.restore_checkpoint_after_setup and self.trainer.ckpt_path is not None:
            return  # the checkpoint is read after this
        pending = [sae for sae in self.saes().values() if not sae.initialized]
        if pending:
            sample = self._sample_training_data(max(sae.n_init_samples for sae in pending))
            warn_of_rounded_inputs(self.trainer, sample)
            with with_full_parameters(self.trainer, writeback=True):
                for sae in pending:
                    sae.initialize(sample[: sae.n_init_samples])

    @torch.no_grad()
    def _sample_training_data(self, n: int) -> Tensor:
        """The first `n` samples of the training stream, the same on every rank, `(<= n, d_in)`."""
        self.trainer.fit_loop.setup_data()
        collected: list[Tensor] = []
        count = 0
        for batch in self.trainer.train_dataloader or ():
            x = self._checked(as_batch(batch), f"batch {len(collected)} of the training stream").activations
            x = x.to(self.device)
            x = self.interleaved(x)
            collected.append(x)
            count += len(x)
            if count >= n:
                break
        if not collected:
            raise ValueError("the training data must hold at least one batch, but it is empty")
        return torch.cat(collected)[:n]

    def full_tensor(self, parameter: Tensor) -> Tensor:
        """All of a parameter, without its gradient, however it is spread; every process must call this."""
        with torch.no_grad(), with_full_parameters(self.trainer, writeback=False):
            return full_tensor(parameter).detach().clone()

    # ------------------------------------------------------------------ steps

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> ActivationBatch:
        """Bring what a data loader yields into one form, and check it while it is still on the host."""
        checked = as_batch(batch)
        self._check_shape(checked)
        # one reduction without a temporary: a sum is finite only if its terms are (or if it overflows)
        self._suspicious = not bool(checked.activations.sum(dtype=torch.float32).isfinite())
        return checked

    def _check_shape(self, batch: ActivationBatch) -> None:
        shape = tuple(batch.activations.shape)
        if len(shape) != 2:
            raise ValueError(f"a batch's activations must have shape (batch, {self.d_in}), but have {shape}")

    def _checked(self, batch: ActivationBatch, where: str) -> ActivationBatch:
        """Raise a NonfiniteError that names the first NaN or infinite activation of a batch."""
        self._check_shape(batch)
        bad = (~batch.activations.isfinite()).nonzero()
        if len(bad):
            row, feature = bad[0].tolist()
            value = batch.activations[row, feature].item()
            message = f"activations must be finite, but {where} holds {value} at row {row}, feature {feature}"
            raise NonfiniteError(message, batch)
        return batch

    def _check(self, batch: ActivationBatch, batch_idx: int, stream: str) -> None:
        if self._suspicious:
            rank = f" (rank {self.global_rank})" if self.trainer.world_size > 1 else ""
            self._checked(batch, f"batch {batch_idx} of the {stream} stream{rank}")

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> Tensor:
        """Return the summed loss of the SAEs; they share no parameter, so their gradients do not mix."""
        self._check(batch, batch_idx, "training")
        log = self.is_logging_step()
        found = self.learn_all(batch.activations, with_l0=log)
        self.losses = {name: terms["loss"].detach() for name, (terms, _) in found.items()}
        self._errors = {name: terms["mse"].detach() for name, (terms, _) in found.items()}
        if log:
            for name, (terms, l0) in found.items():
                assert l0 is not None
                require_in_range(self.trainer, name, terms["loss"])
                self._log_scalars(name, "train", {**terms, "l0": l0}, len(batch.activations))
        loss = torch.stack([terms["loss"] for terms, _ in found.values()]).sum()
        if log and len(found) > 1:  # for the progress bar, which has no room for each member
            l0s = [l0 for _, l0 in found.values() if l0 is not None]
            self.log_dict({"train/loss": loss.detach(), "train/l0": torch.stack(l0s).mean()}, prog_bar=True)
        self.samples_seen += len(batch.activations) * data_ranks(self.trainer)[1]
        return loss

    @torch.no_grad()
    def relative_errors(self, batch: ActivationBatch) -> dict[str, Tensor]:
        """Squared error of the step at hand, relative to the squared norm of its standardised inputs, by SAE."""
        errors = {}
        for name, sae in self.saes().items():
            norm = sae.sae.standardize(batch.activations).square().sum(-1).mean()
            if sae.sae.standardizer.enabled:  # all data have d_in; few samples near the mean may have next to nothing
                norm = norm.clamp(min=self.d_in)
            errors[name] = torch.where(norm > 0, self._errors[name] / norm, 0.0)
        return errors

    def learn_all(self, x: Tensor, with_l0: bool) -> dict[str, StepScalars]:
        """Losses of every SAE for a training batch of raw inputs, with what is logged.

        Args:
            x: Raw inputs, `(n, d_in)`.
            with_l0: Whether to count the latents that fire.
        """
        found = {}
        for name, sae in self.saes().items():
            result = sae.learn(x)
            found[name] = StepScalars(result.terms, result.l0() if with_l0 else None)
        return found

    def _log_scalars(self, name: str, stage: str, scalars: dict[str, Tensor], n: int) -> None:
        for key, value in scalars.items():
            if stage == "train":
                in_bar = not name and key in ("loss", "l0")
                self.log(log_key(name, stage, key), value.detach(), batch_size=n, prog_bar=in_bar)
            else:
                self.log_mean(log_key(name, stage, key), value, n)

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Evaluation]:
        """Evaluate every SAE on a batch; callbacks receive what this returns."""
        return self._evaluate(batch, batch_idx, "val", "validation")

    def test_step(self, batch: ActivationBatch, batch_idx: int) -> dict[str, Evaluation]:
        """Evaluate every SAE on a batch; callbacks receive what this returns."""
        return self._evaluate(batch, batch_idx, "test", "test")

    def _evaluate(self, batch: ActivationBatch, batch_idx: int, stage: str, stream: str) -> dict[str, Evaluation]:
        self._check(batch, batch_idx, stream)
        results = {}
        for name, sae in self.saes().items():
            results[name] = result = sae.evaluate(batch.activations)
            self._log_scalars(name, stage, {**result.terms, "l0": result.l0()}, len(result.x))
        self._errors = {name: result.terms["mse"] for name, result in results.items()}
        return results

    def predict_step(self, batch: ActivationBatch, batch_idx: int) -> Predictions:
        """Encode a batch with every SAE."""
        self._check(batch, batch_idx, "prediction")
        return Predictions({name: sae.encode(batch.activations) for name, sae in self.saes().items()}, batch.concepts)

    # ------------------------------------------------------------------ optimisation

    def on_after_backward(self) -> None:
        """Average the gradients of sharded SAEs over the groups of processes that see other data."""
        average_gradients(self)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip each SAE's gradients by themselves, as if it were trained alone."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            clip_grad_values(self.parameters(), gradient_clip_val)
        else:
            groups = (sae.parameters() for sae in self.saes().values())
            clip_grad_norms(groups, gradient_clip_val, lambda grad: shard_group(grad, self.trainer))
