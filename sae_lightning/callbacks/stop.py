"""Ends a run cleanly on SIGTERM, and with an error where a rank hangs."""

import contextlib
import multiprocessing
import os
import signal
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.modules.run import SIGTERM_STATUS, RunModule
from sae_lightning.nn.parts import require_finite_positive
from sae_lightning.run.lightning_internals import handle_sigterm, kill_launched, limit_waiting


class GracefulStop(RunCallback):
    """Ends training after the step at hand when SIGTERM comes to any rank, as it does before a machine is taken away.

    The checkpoint of that step is `RunCheckpoint`'s to write; then SIGTERMException, which is a SystemExit, ends the
    program with status 143. A validation that has begun is finished first, and a run that is complete ends as ever.

    Lightning stops only where rank 0 got the signal, broadcasts within the signal's handler, where other ranks may be
    in any other operation, and waits for the device at every step. Its two functions are replaced here: the handler
    takes a note, and ranks compare notes (a maximum over one number, on the hosts) while a step is being computed; the
    answer is read a step later. Handlers of others, and Lightning's for SLURM's requeueing, stay as they are.

    Where a rank hangs, the others wait for it in collectives, for `rank_timeout` seconds. Then they end with an error,
    and so does the hanging one if Lightning has started the processes, also where it is stopped (torchrun and SLURM see
    to that themselves). The limit holds from when all ranks are set up; under NCCL, torch's watchdog ends the process.

    Args:
        rank_timeout: Seconds that a rank waits for another one, longer than one of them may work by itself.

    Raises:
        ValueError: If `rank_timeout` is not positive and finite.

    Attributes:
        stopping: Whether the step at hand is the last one; the same on all ranks.
    """

    key = "stop"

    def __init__(self, rank_timeout: float = 600.0) -> None:
        require_finite_positive("rank_timeout", rank_timeout)
        self.rank_timeout = rank_timeout
        self.stopping = False
        self._told = False  # whether callbacks know, at the end of a batch, that its step is the last one
        self._signalled = False
        self._answer: tuple[torch.Tensor, Any] | None = None  # what the ranks were asked in the step before
        self._group: Any = None
        self._step = 0
        self._launched_by: int | None = None  # process of the rank that has started this one

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Replace Lightning's functions, which are registered after this."""
        super().setup(trainer, pl_module, stage)
        self.stopping = self._told = self._signalled = False
        self._answer = None
        process = os.getpid()

        def notice(signum: int, _: Any) -> None:
            if os.getpid() != process:  # a worker process, which inherits handlers
                return
            launcher = trainer.strategy.launcher
            if launcher is not None and not self._signalled:
                launcher.kill(signum)
            self._signalled = True
            for child in multiprocessing.active_children():  # members of a comparison, workers of a data loader
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child.pid or 0, signal.SIGCONT)  # a stopped one would not let the step end
            if isinstance(pl_module, RunModule):
                pl_module.on_sigterm()
            if stage != "fit":  # there is nothing to save
                raise SIGTERMException(SIGTERM_STATUS)

        handle_sigterm(trainer, notice, self._compare_notes)
        if trainer.world_size == 1:
            return
        if stage == "fit" and self._group is None:
            self._group = dist.new_group(backend="gloo")
        limit_waiting(self.rank_timeout)
        ranks: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(ranks, (trainer.node_rank, os.getpid()))
        self._launched_by = os.getppid() if (trainer.node_rank, os.getppid()) in ranks else None

    def _compare_notes(self) -> None:
        """Read the ranks' answers of the last batch, and ask again; Lightning calls this once per batch."""
        if self._answer is not None:
            (note, work), self._answer = self._answer, None
            work.wait()
            self.stopping = self.stopping or bool(note)
        note = torch.tensor([self._signalled], dtype=torch.int32)
        self._answer = note, dist.all_reduce(note, dist.ReduceOp.MAX, group=self._group, async_op=True)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """End training where the step before was the last one.

        Raises:
            SIGTERMException: On all ranks, at the same step.
        """
        if self._told and trainer.global_step != self._step:
            raise SIGTERMException(_status(trainer))
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """A process that trains alone need not ask; callbacks after this one know that it is the last step."""
        if trainer.world_size == 1:
            self.stopping = self._signalled
        self._told = self.stopping

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Where another rank hangs, say so, and see that nothing of the run is left."""
        if trainer.world_size == 1 or not isinstance(exception, RuntimeError) or "imed out" not in str(exception):
            return
        self._answer = None  # it will not come
        exception.args = (
            f"rank {trainer.global_rank} has waited {self.rank_timeout:g} s for another one, which is stopped or hangs "
            f"(where it works by itself so long, raise --stop.rank_timeout): {exception}",
        )
        kill_launched(trainer, signal.SIGKILL)
        if self._launched_by is not None:  # it ends the others when it sees that this one has failed, if it can
            os.kill(self._launched_by, signal.SIGCONT)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Leave no question open."""
        if self._answer is not None:
            self._answer[1].wait()
            self._answer = None


def stops(trainer: pl.Trainer) -> bool:
    """Whether the step at hand is the last one because SIGTERM came."""
    return any(callback.stopping for callback in trainer.callbacks if isinstance(callback, GracefulStop))  # type: ignore[attr-defined]


def _status(trainer: pl.Trainer) -> int:
    """Exit status; processes that Lightning started must not end with an error, or it would kill the first one."""
    strategy = trainer.strategy
    started = isinstance(strategy, ParallelStrategy) and isinstance(strategy.cluster_environment, LightningEnvironment)
    return 0 if started and trainer.local_rank > 0 else SIGTERM_STATUS
