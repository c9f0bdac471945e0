"""RunModule: base of everything that the command line trains."""

import inspect
import signal
import types
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sae_lightning.data.ranks import data_group, data_ranks
from sae_lightning.modules.means import SampleMean
from sae_lightning.modules.optimizers import (
    LRSchedulerCallable,
    OptimizerCallable,
    OptimizerRecord,
    change_arguments,
    check_moments,
    clippable,
    make_scheduler,
    own_optimizer,
    own_scheduler,
    require_length,
)
from sae_lightning.moved import current_path
from sae_lightning.nn.parts import Recorded
from sae_lightning.run.checkpoint import CHECKPOINT_KEY

SIGTERM_STATUS = 128 + signal.SIGTERM
"""Exit status of a run that SIGTERM ended, 143, as shells and schedulers know it."""


class NonfiniteError(ValueError):
    """A batch or a loss that holds NaN or infinities.

    Args:
        message: What is not finite, and where.
        batch: The batch.
        facts: Further facts by name, for the message.
    """

    def __init__(self, message: str, batch: Any = None, facts: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.batch = batch
        self.facts = dict(facts or {})


class RunModule(Recorded, pl.LightningModule):
    """Counts training samples, and describes itself in checkpoints.

    Attributes:
        samples_seen: Training samples of all processes so far.
        losses: Losses of the training step at hand by SAE, where there are several to tell apart.
    """

    described_in_files = True
    _make_optimizer: OptimizerCallable
    _lr_scheduler: LRSchedulerCallable | None = None

    def __init__(self) -> None:
        super().__init__()
        self.samples_seen = 0
        self.losses: dict[str, Tensor] = {}
        self._records: dict[str, OptimizerRecord] | None = None
        self._changed: dict[str, dict[str, tuple[Any, Any]]] = {}  # arguments of optimizers, since the checkpoint
        self._means = nn.ModuleDict()  # of what is logged in evaluation, by key

    def save_hyperparameters(
        self,
        *args: Any,
        ignore: Sequence[str] | str | None = None,
        frame: types.FrameType | None = None,
        logger: bool = True,
    ) -> None:
        """Save hyperparameters as Lightning does, by default those that `describe` gives.

        Lightning reads them from the constructor's frame, where those that pass through `**kwargs` have no name.
        """
        given = self.describe()["init_args"]
        ignored = {ignore} if isinstance(ignore, str) else set(ignore or ())
        names = set(given) if not args else {name for name in args if isinstance(name, str)}
        chosen = {name: value for name, value in given.items() if name in names - ignored}
        found: Any = args[0] if len(args) == 1 and not isinstance(args[0], str) else chosen
        outermost = frame or inspect.currentframe()
        while outermost is not None and outermost.f_back is not None:  # a frame in which Lightning finds no constructor
            outermost = outermost.f_back
        super().save_hyperparameters(found, ignore=ignore, frame=outermost, logger=logger)

    def train_with(
        self, optimizer: OptimizerCallable | None = None, lr_scheduler: LRSchedulerCallable | None = None
    ) -> None:
        """Replace optimizer and schedule, which are no part of the description in a checkpoint.

        Args:
            optimizer: Makes the optimizer from the parameters; None keeps the present one.
            lr_scheduler: Makes the learning-rate schedule; None for none.
        """
        if optimizer is not None:
            self._make_optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self._records = None

    def trained_parts(self) -> "dict[str, RunModule]":
        """Return the parts that have their own optimizer, by name; a module without parts has the empty name."""
        return {"": self}

    def make_optimizer(self) -> tuple[Optimizer, LRScheduler | None]:
        """Build the optimizer and the schedule of a module without parts.

        Raises:
            ValueError: If one of their arguments is out of range.
        """
        try:
            optimizer = clippable(self._make_optimizer(self.parameters()))
        except ValueError as error:
            raise ValueError(f"model.optimizer cannot be made: {error}") from None
        try:
            return optimizer, make_scheduler(optimizer, self._lr_scheduler)
        except ValueError as error:
            raise ValueError(f"model.lr_scheduler cannot be made: {error}") from None

    def optimizer_records(self) -> dict[str, OptimizerRecord]:
        """Return the optimizer and schedule of each part, in plain values.

        Raises:
            ValueError: If an optimizer or a schedule cannot be made.
        """
        if self._records is None:
            self._records = {
                name: OptimizerRecord.of(*part.make_optimizer()) for name, part in self.trained_parts().items()
            }
        return self._records

    def on_train_start(self) -> None:
        """Apply changed optimizer arguments to the restored state; check that schedules are long enough.

        Raises:
            ValueError: If a schedule ends before training does.
        """
        for optimizer in self.trainer.optimizers:
            check_moments(optimizer)
        for name, changes in self._changed.items():
            scheduler = self.lr_schedulers()
            part = own_optimizer(self.trainer.optimizers[0], name)
            change_arguments(part, own_scheduler(scheduler, name), changes)
            told = ", ".join(f"{key} = {now} instead of {before}" for key, (before, now) in changes.items())
            rank_zero_warn(f"training continues with {told} in the optimizer{f' of {name}' if name else ''}")
        self._changed = {}
        for name in self.trained_parts():
            require_length(own_scheduler(self.lr_schedulers(), name), self.trainer.estimated_stepping_batches)

    def is_logging_step(self) -> bool:
        """Whether the current training step is one at which the trainer logs."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (self.global_step + 1) % every == 0

    def relative_errors(self, batch: Any) -> dict[str, Tensor]:
        """Return the errors of the current training or validation step by SAE, relative to a reconstruction of zero.

        Args:
            batch: The batch of the step.

        Returns:
            Scalars; none where a model reconstructs nothing.
        """
        return {}

    def log_mean(self, key: str, mean: Tensor, n: int, prog_bar: bool = False) -> None:
        """Log a mean over all samples of a validation or test, of all batches and processes.

        Every process must call it for the same keys, also where its share of a batch is empty.

        Args:
            key: Log key.
            mean: Mean over the batch at hand, scalar.
            n: Samples (or tokens) of that batch, at least 0.
            prog_bar: Whether the progress bar shows it.
        """
        if key not in self._means:
            metric = SampleMean().to(self.device)
            metric.process_group = data_group(self.trainer)
            self._means[key] = metric
        metric = self._means[key]  # type: ignore[assignment]
        metric.update(mean, n)
        self.log(
            key, metric, on_step=False, on_epoch=True, batch_size=n, prog_bar=prog_bar, metric_attribute=f"_means.{key}"
        )

    def interleaved(self, x: Tensor) -> Tensor:
        """The samples of all processes that read different data, in the order in which one process would see them.

        Args:
            x: This process's samples, `(n, ...)`: every `world_size`-th one. Shares may differ by one sample.

        Returns:
            All samples, `(total, ...)`, the same on every process; without a gradient.
        """
        if data_ranks(self.trainer)[1] == 1:
            return x
        group = data_group(self.trainer)
        counts = self.all_gather(torch.tensor(len(x), device=x.device), group=group)
        assert isinstance(counts, Tensor)
        room = int(counts.max())
        padded = torch.cat([x, x.new_zeros(room - len(x), *x.shape[1:])])
        gathered = self.all_gather(padded, group=group)
        assert isinstance(gathered, Tensor)
        return gathered.transpose(0, 1).flatten(0, 1)[: int(counts.sum())]  # what was filled in is last

    def on_sigterm(self) -> None:
        """Shorten timeouts of the current step; called within the handler of SIGTERM."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store how to build this module, how it is trained, and how many samples it has seen."""
        optimizers = {name: record._asdict() for name, record in self.optimizer_records().items()}
        checkpoint[CHECKPOINT_KEY] = {**self.describe(), "samples_seen": self.samples_seen, "optimizers": optimizers}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Reject a checkpoint of another class or, in training, of another optimizer; restore the count of samples.

        Raises:
            ValueError: If the checkpoint was made by another class, or training cannot be resumed from it as it is
                configured now.
        """
        saved = checkpoint.get(CHECKPOINT_KEY, {})
        own = self.describe()["class_path"]
        if current_path(saved.get("class_path", own)) != own:
            raise ValueError(f"the checkpoint is of class {saved['class_path']}, but the model is of class {own}")
        self.samples_seen = int(saved.get("samples_seen", 0))
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            if not checkpoint.get("optimizer_states") or "fit_loop" not in checkpoint.get("loops", {}):
                raise ValueError("training cannot be resumed from a checkpoint without optimizer_states and loops")
            self._changed = self.optimizer_changes(saved.get("optimizers"))

    def optimizer_changes(self, saved: Any) -> dict[str, dict[str, tuple[Any, Any]]]:
        """Return the optimizer arguments that differ from those of a checkpoint, by part and name: before, and now.

        Args:
            saved: What the checkpoint says of its optimizers; None for those of earlier versions.

        Raises:
            ValueError: If training cannot be resumed like this, or `saved` is no such description.
        """
        if saved is None:
            return {}
        records = self.optimizer_records()
        if not isinstance(saved, dict) or saved.keys() != records.keys():
            parts = ", ".join(filter(None, records)) or "the module"
            raise ValueError(f"the checkpoint must say how {parts} was trained, but does not")
        found = {}
        for name, record in records.items():
            try:
                before = OptimizerRecord.read(saved[name])
            except ValueError as error:
                raise ValueError(f"the checkpoint does not say how the module was trained: {error}") from None
            changes = record.changes(before, f"model.{name}" if name else "model")
            if changes:
                found[name] = changes
        return found
