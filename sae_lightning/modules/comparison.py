"""Comparison: several SAEs on the same stream of batches."""

import os
import re
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from sae_lightning.data.batch import ActivationBatch
from sae_lightning.modules.base import BaseSAE
from sae_lightning.modules.member import StepScalars
from sae_lightning.modules.module import SAEModule
from sae_lightning.modules.optimizers import OptimizerGroup, SchedulerGroup
from sae_lightning.modules.processes import MemberProcesses
from sae_lightning.modules.run import RunModule
from sae_lightning.nn.parts import require_finite_positive, require_positive

_PREFIX = "sae_"  # lets a member have the name of one of ModuleDict's methods


class Comparison(SAEModule):
    """Trains and tests several SAEs side by side, each as if it were alone.

    Every member sees the same batches and has its own initial draw, optimizer, schedule and gradient clipping: its
    weights are those of the same SAE trained by itself. (With 16-mixed precision the members share one loss scale.)
    A member's metrics are logged under its name.

    Args:
        d_in: Size of an activation.
        members: Makes each SAE from `d_in`, by name. Names become folders and log keys: letters, digits, `-`, `_`.
        processes: How many processes train the members side by side on a CPU, each on one thread: at most as many as
            it has cores. With 1, and wherever training is distributed or on an accelerator, they are trained in turn.
        process_timeout: Seconds that such a process may take for its part of a step before it counts as hung, which
            ends training.

    Raises:
        ValueError: If there is no member, a name has other characters, there are no processes, or `process_timeout` is
            not positive and finite.
    """

    undescribed = frozenset({"process_timeout"})

    def __init__(
        self,
        d_in: int,
        members: dict[str, Callable[[int], BaseSAE]],
        processes: int = 1,
        process_timeout: float = 600.0,
    ) -> None:
        super().__init__(d_in)
        require_positive("processes", processes)
        require_finite_positive("process_timeout", process_timeout)
        if not members:
            raise ValueError("members must name at least one SAE, but is empty")
        for name in members:
            if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
                raise ValueError(f"names of members must be made of letters, digits, '-' and '_', but one is {name!r}")
        self.members = nn.ModuleDict({_PREFIX + name: make(d_in) for name, make in members.items()})
        for name, sae in self.saes().items():
            if not isinstance(sae, BaseSAE):
                raise ValueError(f"members must make SAEs (BaseSAE), but {name!r} makes a {type(sae).__name__}")
        self.processes = processes
        self.process_timeout = process_timeout
        self._side_by_side: MemberProcesses | None = None
        self._losses: list[Tensor] = []
        self.init_args["members"] = {name: self._describe_member(sae) for name, sae in self.saes().items()}
        self.save_hyperparameters()

    @staticmethod
    def _describe_member(sae: BaseSAE) -> dict[str, Any]:
        description = sae.describe()
        description["init_args"].pop("d_in")
        return description

    def saes(self) -> dict[str, BaseSAE]:
        """The members by name."""
        return {name.removeprefix(_PREFIX): sae for name, sae in self.members.items()}  # type: ignore[misc]

    def trained_parts(self) -> dict[str, RunModule]:
        """Return the members; each has its own optimizer."""
        return dict(self.saes())

    # ------------------------------------------------------------------ side by side

    def on_train_start(self) -> None:
        """Start the processes; they see the weights as they are now."""
        super().on_train_start()
        self._stop_processes()  # where an earlier fit was interrupted
        n = min(self.processes, len(self.saes()))
        if n == 1:
            return
        scaled = self.trainer.precision == "16-mixed"  # gradients found by other processes would not be
        if self.device.type != "cpu" or self.trainer.world_size > 1 or scaled or not hasattr(os, "fork"):
            rank_zero_warn(
                f"processes = {self.processes} has no effect here: members train in turn, for training is distributed, "
                "on an accelerator, with a scaled loss, or on a system that cannot fork"
            )
            return
        self._side_by_side = MemberProcesses(self.saes(), n, self.process_timeout)

    def on_train_end(self) -> None:
        """End the processes."""
        self._stop_processes()

    def on_sigterm(self) -> None:
        """Shorten the timeout of the processes to little more than a step takes."""
        if self._side_by_side is not None:
            self._side_by_side.hurry()

    def _stop_processes(self) -> None:
        if self._side_by_side is not None:
            self._side_by_side.close()
            self._side_by_side = None

    def learn_all(self, batch: ActivationBatch, with_l0: bool) -> dict[str, StepScalars]:
        """Return the losses of every member; side by side, gradients are computed too and kept for `backward`."""
        if self._side_by_side is None:
            return super().learn_all(batch, with_l0)
        try:
            found = self._side_by_side.learn(batch, with_l0)
        except BaseException:  # Lightning tells a module of no exception
            self._stop_processes()
            raise
        self._losses = [terms["loss"].requires_grad_() for terms, _ in found.values()]
        return found

    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Set the gradients that `learn_all` has computed, scaled as Lightning has scaled the loss."""
        if self._side_by_side is None:
            super().backward(loss, *args, **kwargs)
        else:
            self._side_by_side.backward([float(f) for f in torch.autograd.grad(loss, self._losses)])

    # ------------------------------------------------------------------ optimization

    def configure_optimizers(self) -> Any:
        """Return a group of the members' optimizers and one of their schedules."""
        made = {name: sae.make_optimizer() for name, sae in self.saes().items()}
        optimizer = OptimizerGroup({name: own for name, (own, _) in made.items()})
        schedulers = {name: schedule for name, (_, schedule) in made.items() if schedule is not None}
        if not schedulers:
            return optimizer
        schedule = SchedulerGroup(optimizer, schedulers)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
