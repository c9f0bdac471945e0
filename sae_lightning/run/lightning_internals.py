"""Private names of Lightning, torchmetrics and jsonargparse that this package uses, and why.

Overridden methods are mixins here that call a public one; private attributes are read and set by functions here. What
other files must use by themselves is listed in `INTERNALS` as well. Tried with lightning 2.6.6, torchmetrics 1.9.0 and
jsonargparse 4.53.0, to which pyproject.toml pins them; a test looks for each entry by name, and fails first where a
later version has another.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple

import jsonargparse
import lightning.pytorch as pl
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher


class Internal(NamedTuple):
    """A name that may change without notice."""

    path: str
    """Its import path; one that begins with `trainer.` is an attribute of a Trainer, `parser.` of an ArgumentParser."""
    used_in: str
    """The module of this package that uses it."""
    reason: str
    """What it is used for, and why nothing public does."""
    parameters: tuple[str, ...] | None = None
    """Names of the parameters of a function that is called or overridden; None where that does not matter."""


_STOP = "callbacks.stop"
_RESUME = "callbacks.checkpoint"
_LOOP = "trainer.fit_loop"
_DDP = "lightning.pytorch.strategies"

INTERNALS: tuple[Internal, ...] = (
    Internal(
        "lightning.pytorch.cli.LightningCLI._parse_ckpt_path",
        "cli.lightning_cli",
        "lets the hyperparameters of --ckpt_path win; SAEs describe themselves, and there is no hook and no switch",
        ("self",),
    ),
    Internal(
        "trainer._signal_connector._sigterm_notifier_fn",
        _STOP,
        "Lightning's handler broadcasts within the signal's handler, where ranks may be in any other operation",
        ("signum", "_"),
    ),
    Internal(
        f"{_LOOP}.epoch_loop._broadcast_sigterm_tensor",
        _STOP,
        "waits for the device at every step, and notices only rank 0's signal",
        (),
    ),
    Internal(
        "lightning.pytorch.strategies.launchers._SubprocessScriptLauncher.kill",
        _STOP,
        "ends the processes that Lightning has started where one hangs",
        ("self", "signum"),
    ),
    Internal("torch.distributed.distributed_c10d._set_pg_timeout", _STOP, "changes the timeout of existing groups"),
    Internal("torch.distributed.distributed_c10d._world.pg_map", _STOP, "all groups, those of a mesh included"),
    Internal(f"{_LOOP}.restarted_mid_epoch", _RESUME, "whether a run resumes within an epoch"),
    Internal(f"{_LOOP}.reset_restart_stage", _RESUME, "begins the next epoch where a checkpoint ends one", ()),
    Internal(f"{_LOOP}.epoch_progress.total.completed", _RESUME, "tells whether an epoch has ended"),
    Internal(f"{_LOOP}.epoch_progress.increment_completed", _RESUME, "ends an epoch with no batch left", ()),
    Internal(f"{_LOOP}.epoch_progress.increment_processed", _RESUME, "the same", ()),
    *(
        Internal(f"{_LOOP}.epoch_loop.batch_progress.current.{name}", _RESUME, "recomputed if the batch size changes")
        for name in ("ready", "started", "processed", "completed")
    ),
    Internal(f"{_LOOP}.epoch_loop.batch_progress.is_last_batch", _RESUME, "whether the epoch's batches are done"),
    Internal(
        "lightning.pytorch.loggers.csv_logs.ExperimentWriter._check_log_dir_exists",
        "run.loggers",
        "deletes an existing metrics.csv, to which a resumed run appends",
        ("self",),
    ),
    Internal(
        "lightning.pytorch.loggers.csv_logs.ExperimentWriter._rewrite_with_new_header",
        "run.loggers",
        "writes in place, where a kill would leave half a file",
        ("self", "fieldnames"),
    ),
    Internal("lightning.pytorch.loggers.CSVLogger(.)._experiment", "run.loggers", "the writer that finalize closes"),
    Internal(
        "torchmetrics.Metric._wrap_compute",
        "metrics._base",
        "squeezes results of one element, whose shape would depend on the number of concepts",
        ("self", "compute"),
    ),
    Internal(
        "torchmetrics.Metric._apply",
        "metrics._base",
        "converts states to half precision with the module, where counts would be rounded",
        ("self", "fn", "exclude_state"),
    ),
    Internal("jsonargparse.Path.read_text", "cli.parser", "reads configs in the system's encoding", ("self",)),
    Internal("parser._subcommands_action", "cli.parser", "the parsers of subcommands, for what was probably meant"),
    Internal("parser._actions", "cli.parser", "the arguments of a parser, for the same (argparse)"),
    Internal("lightning.pytorch.LightningModule()._trainer", "modules.run", "`trainer` raises where there is none"),
    Internal(f"{_DDP}.ModelParallelStrategy()._save_distributed_checkpoint", "modules.sharding", "one file or many"),
    Internal(f"{_DDP}.FSDPStrategy()._state_dict_type", "modules.sharding", "one file or many"),
)
"""All of them. (`LightningModule._ddp_params_and_buffers_to_ignore`, which `modules.module` sets, is torch's: DDP reads
it from whatever module it wraps.)"""


# ---------------------------------------------------------------------- command line


class CheckpointCLI(LightningCLI):
    """LightningCLI that asks a public method what `--ckpt_path` says of the model."""

    def take_checkpoint(self) -> None:
        """Called when arguments are parsed, before anything is built."""
        raise NotImplementedError

    def _parse_ckpt_path(self) -> None:
        self.take_checkpoint()


def options_of(parser: Any) -> list[str]:
    """The option strings of a parser and of its subcommands, such as `--trainer.max_steps`."""
    parsers = [parser, *(parser._subcommands_action.choices.values() if parser._subcommands_action else ())]
    return [option for part in parsers for action in part._actions for option in action.option_strings]


def has_argument(parser: Any, name: str) -> bool:
    """Whether a parser itself, not one of its subcommands, has an argument."""
    return any(action.dest == name for action in parser._actions)


@contextmanager
def configs_read_by(read: Callable[[Any, Callable[[Any], str]], str]) -> Iterator[None]:
    """Read configuration files, wherever the parser meets one, by a function.

    Args:
        read: Takes jsonargparse's path and its own way of reading, and returns the text.
    """
    config_path: Any = jsonargparse.Path  # type: ignore[attr-defined]
    original = config_path.read_text
    config_path.read_text = lambda path: read(path, original)
    try:
        yield
    finally:
        config_path.read_text = original


# ---------------------------------------------------------------------- signals and processes


def handle_sigterm(trainer: pl.Trainer, handler: Callable[[int, Any], None], per_batch: Callable[[], None]) -> None:
    """Replace what a trainer does on SIGTERM; it registers its handlers after the callbacks' `setup`.

    Args:
        trainer: The trainer.
        handler: Handles the signal.
        per_batch: Is called before every training batch where there are several processes.
    """
    trainer._signal_connector._sigterm_notifier_fn = handler  # type: ignore[method-assign, assignment]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = per_batch  # type: ignore[method-assign]


def limit_waiting(seconds: float) -> None:
    """Let collectives of all process groups fail after so many seconds.

    A strategy's own argument would not reach the groups of its mesh.
    """
    import torch.distributed.distributed_c10d as c10d

    for group in list(c10d._world.pg_map):
        c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def kill_launched(trainer: pl.Trainer, signum: signal.Signals) -> None:
    """Send a signal to the processes that Lightning has started as scripts, if it has."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.kill(signum)


# ---------------------------------------------------------------------- resuming


def resumes_within_epoch(trainer: pl.Trainer) -> bool:
    """Whether training was restored from a checkpoint in the midst of an epoch."""
    return bool(trainer.fit_loop.restarted_mid_epoch)


def begin_next_epoch(trainer: pl.Trainer) -> None:
    """Begin a new epoch where a checkpoint ends one.

    Lightning has counted the epoch as over by now, but would begin the next one as if it had begun before.
    """
    loop, epochs = trainer.fit_loop, trainer.fit_loop.epoch_progress.total
    if loop.restarted_mid_epoch and epochs.completed == epochs.ready:
        loop.reset_restart_stage()


def batches_read(trainer: pl.Trainer) -> int:
    """How many batches of the current epoch count as read."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


def count_batches(trainer: pl.Trainer, done: int, length: int) -> None:
    """Let `done` of `length` batches of the current epoch count as done; if these are all, so does the epoch."""
    epochs, batches = trainer.fit_loop.epoch_progress, trainer.fit_loop.epoch_loop.batch_progress
    if done == length and not batches.is_last_batch:
        epochs.increment_processed()
        epochs.increment_completed()
    ahead = done - batches.current.ready
    for count in ("ready", "started", "processed", "completed"):
        setattr(batches.current, count, getattr(batches.current, count) + ahead)


# ---------------------------------------------------------------------- files


class OpenedCSVWriter(ExperimentWriter):
    """The writer of CSVLogger, with public methods for how its file is opened and rewritten."""

    def open_file(self) -> None:
        """Called when the writer is made; the folder exists."""
        raise NotImplementedError

    def rewrite_file(self) -> None:
        """Write the file again, since `metrics_keys` have changed."""
        raise NotImplementedError

    def _check_log_dir_exists(self) -> None:
        self.open_file()

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        self.rewrite_file()
