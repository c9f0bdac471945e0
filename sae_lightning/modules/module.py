"""SAEModule: training, validation, test and prediction of one SAE or several."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import Metric

from sae_lightning.data.batch import ActivationBatch, as_batch
from sae_lightning.data.ranks import data_group, data_ranks
from sae_lightning.modules.allocator import keep_freed_memory
from sae_lightning.modules.clipping import clip_grad_norms, clip_grad_values
from sae_lightning.modules.member import Evaluation, Member, StepScalars
from sae_lightning.modules.precision import require_in_range, require_trainable, warn_of_rounded_inputs
from sae_lightning.modules.run import NonfiniteError, RunModule
from sae_lightning.modules.sharding import average_gradients, shard, shard_group, with_full_parameters
from sae_lightning.nn.rows import full_tensor


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
    def saes(self) -> Mapping[str, Member]:
        """Return the SAEs by name; a single one has the empty name."""

    def backends(self) -> dict[str, str]:
        """Return the name of the backend that runs each SAE on its current device."""
        return {name: sae.running(self.device.type).name for name, sae in self.saes().items()}

    # ------------------------------------------------------------------ set-up

    def setup(self, stage: str) -> None:
        """Check that data and model fit, and exclude buffers from DDP's broadcasts: they are equal on all ranks.

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
        """Shard the SAEs if the strategy does."""
        if self._trainer is None:  # Lightning's load_from_checkpoint calls this too
            return
        shard(self, self.saes(), self.trainer)
        for metric in self.modules():
            if isinstance(metric, Metric):  # processes with the same samples count them once
                metric.process_group = data_group(self.trainer)

    def on_fit_start(self) -> None:
        """Fit standardization and initial values to training data, unless a checkpoint has them."""
        if self.device.type == "cpu":
            keep_freed_memory()
        names = self.backends().values()
        rank_zero_info(f"Backend: {', '.join(f'{name} ({count})' for name, count in Counter(names).items())}")
        if self.trainer.strategy.restore_checkpoint_after_setup and self.trainer.ckpt_path is not None:
            return  # the checkpoint is read after this
        pending = [sae for sae in self.saes().values() if not sae.initialized]
        if pending:
            x, target = self._sample_training_data(max(sae.n_init_samples for sae in pending))
            warn_of_rounded_inputs(self.trainer, x)
            with with_full_parameters(self.trainer, writeback=True):
                for sae in pending:
                    n = sae.n_init_samples
                    sae.initialize(x[:n], None if target is None else target[:n])

    def on_train_start(self) -> None:
        """Begin the schedules of coefficients, or continue those of the checkpoint."""
        super().on_train_start()
        scheduled = [sae for sae in self.saes().values() if sae.schedules]
        if scheduled:
            n_steps = self.trainer.estimated_stepping_batches
            for sae in scheduled:
                sae.begin_training(n_steps, resumed=self.trainer.ckpt_path is not None)

    @torch.no_grad()
    def _sample_training_data(self, n: int) -> tuple[Tensor, Tensor | None]:
        """Return the first `n` samples of the training stream, and their targets, the same on every rank."""
        self.trainer.fit_loop.setup_data()
        inputs: list[Tensor] = []
        targets: list[Tensor] = []
        count = 0
        for loaded in self.trainer.train_dataloader or ():
            read = self._with_targets_if_read(as_batch(loaded))
            batch = self._checked(read, f"batch {len(inputs)} of the training stream")
            inputs.append(self.interleaved(batch.activations.to(self.device)))
            if batch.target is not None:
                targets.append(self.interleaved(batch.target.to(self.device)))
            count += len(inputs[-1])
            if count >= n:
                break
        if not inputs:
            raise ValueError("the training data must hold at least one batch, but it is empty")
        if targets and len(targets) != len(inputs):
            raise ValueError(f"all training batches must hold targets, or none, but {len(targets)} of {len(inputs)} do")
        return torch.cat(inputs)[:n], torch.cat(targets)[:n] if targets else None

    def full_tensor(self, parameter: Tensor) -> Tensor:
        """Return a whole parameter, detached, even if it is sharded; every process must call this."""
        with torch.no_grad(), with_full_parameters(self.trainer, writeback=False):
            return full_tensor(parameter).detach().clone()

    # ------------------------------------------------------------------ steps

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> ActivationBatch:
        """Convert a batch to an ActivationBatch, and check it while it is still on the host."""
        checked = self._with_targets_if_read(as_batch(batch))
        self._check_shape(checked)
        # one reduction without a temporary: a sum is finite only if its terms are (or if it overflows)
        values = [checked.activations] if checked.target is None else [checked.activations, checked.target]
        self._suspicious = not all(bool(value.sum(dtype=torch.float32).isfinite()) for value in values)
        return checked

    def _with_targets_if_read(self, batch: ActivationBatch) -> ActivationBatch:
        """Return a batch without targets if no SAE has some."""
        if batch.target is None or any(sae.target_shape is not None for sae in self.saes().values()):
            return batch
        return batch._replace(target=None)

    def _check_shape(self, batch: ActivationBatch) -> None:
        shape = tuple(batch.activations.shape)
        for sae in self.saes().values():
            if len(shape) != 1 + len(sae.input_shape):
                wanted = ", ".join(map(str, ("batch", *sae.input_shape)))
                raise ValueError(f"a batch's activations must have shape ({wanted}), but have {shape}")

    def _checked(self, batch: ActivationBatch, where: str) -> ActivationBatch:
        """Raise a NonfiniteError that names the first NaN or infinite value of a batch."""
        self._check_shape(batch)
        for name, values in (("activations", batch.activations), ("targets", batch.target)):
            if values is None or bool(values.isfinite().all()):
                continue
            place = (~values.isfinite()).nonzero()[0]
            row, *others = place.tolist()
            layer = f", layer {others[0]}" if len(others) == 2 else ""
            value = values[tuple(place)].item()
            message = f"{name} must be finite, but {where} holds {value} at row {row}{layer}, feature {others[-1]}"
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
        for sae in self.saes().values():
            if sae.schedules:
                sae.advance(self.global_step)
        found = self.learn_all(batch, with_l0=log)
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
        """Return the squared error of the current step, relative to the squared norm of its targets, by SAE."""
        errors = {}
        for name, sae in self.saes().items():
            _, wanted = sae.sae.standardize_pair(batch.activations, batch.target)
            norm = wanted.square().sum(-1).mean()
            if sae.sae.standardizer.enabled:  # all data have d_out; a few samples near the mean may have almost none
                norm = norm.clamp(min=sae.sae.d_out)
            errors[name] = torch.where(norm > 0, self._errors[name] / norm, 0.0)
        return errors

    def learn_all(self, batch: ActivationBatch, with_l0: bool) -> dict[str, StepScalars]:
        """Return the losses of every SAE for a training batch, with what is logged.

        Args:
            batch: Raw inputs and, for SAEs that have some, targets.
            with_l0: Whether to count the latents that fire.
        """
        found = {}
        for name, sae in self.saes().items():
            result = sae.learn(batch.activations, batch.target)
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
            results[name] = result = sae.evaluate(batch.activations, batch.target)
            self._log_scalars(name, stage, {**result.terms, "l0": result.l0()}, len(result.x))
        self._errors = {name: result.terms["mse"] for name, result in results.items()}
        return results

    def predict_step(self, batch: ActivationBatch, batch_idx: int) -> Predictions:
        """Encode a batch with every SAE."""
        self._check(batch, batch_idx, "prediction")
        return Predictions({name: sae.encode(batch.activations) for name, sae in self.saes().items()}, batch.concepts)

    # ------------------------------------------------------------------ optimization

    def on_after_backward(self) -> None:
        """Average the gradients of sharded SAEs over the processes that read different data."""
        average_gradients(self)

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: int | float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the gradients of each SAE separately, as if it were trained alone."""
        if not gradient_clip_val:
            return
        if gradient_clip_algorithm == "value":
            clip_grad_values(self.parameters(), gradient_clip_val)
        else:
            groups = (sae.parameters() for sae in self.saes().values())
            clip_grad_norms(groups, gradient_clip_val, lambda grad: shard_group(grad, self.trainer))
