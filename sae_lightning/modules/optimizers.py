"""Several optimizers and schedulers that step together, each with a state of its own."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "LRSchedulerCallable",
    "OptimizerCallable",
    "OptimizerGroup",
    "SchedulerGroup",
    "adam",
    "clippable",
    "make_scheduler",
]


def adam(params: Any) -> Optimizer:
    """Adam with learning rate 1e-3, in PyTorch's fused implementation: the default of every SAE."""
    return torch.optim.Adam(params, lr=1e-3, fused=True)


def clippable(optimizer: Optimizer) -> Optimizer:
    """The same optimizer, whose gradients may be clipped under mixed precision.

    Fused optimizers offer to unscale fp16 gradients within their step, which is too late for clipping: Lightning
    refuses to clip then, even where nothing is scaled (bf16).
    """
    if hasattr(optimizer, "_step_supports_amp_scaling"):
        optimizer._step_supports_amp_scaling = False
    return optimizer


def make_scheduler(optimizer: Optimizer, factory: LRSchedulerCallable | None) -> LRScheduler | None:
    """Build a learning-rate scheduler that steps once per training step.

    Raises:
        ValueError: For a scheduler that needs a monitored metric.
    """
    if factory is None:
        return None
    scheduler = factory(optimizer)
    if isinstance(scheduler, (ReduceLROnPlateau, torch.optim.lr_scheduler.ReduceLROnPlateau)):
        raise ValueError("lr_scheduler must step by training steps, which ReduceLROnPlateau cannot")
    return scheduler


class OptimizerGroup(Optimizer):
    """Steps a named set of optimizers as one, so that Lightning counts one step per batch.

    The parameter groups are the members' own, so clipping, unscaling and logging of learning rates work as for
    one optimizer; the state stays with each member.

    Args:
        optimizers: Member optimizers by name.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self.optimizers = dict(optimizers)
        super().__init__([group for o in self.optimizers.values() for group in o.param_groups], {})

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Evaluate the closure once, then step every member."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for optimizer in self.optimizers.values():
            optimizer.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Each member's state by its name."""
        return {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore each member's state."""
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state_dict[name])
        self.param_groups = [group for o in self.optimizers.values() for group in o.param_groups]


def own_optimizer(optimizer: Optimizer, name: str) -> Optimizer:
    """The optimizer of one SAE: its own within a group, else the only one there is."""
    return optimizer.optimizers[name] if isinstance(optimizer, OptimizerGroup) else optimizer


class SchedulerGroup(LRScheduler):
    """Steps a named set of learning-rate schedulers as one.

    Args:
        optimizer: The group whose members the schedulers drive.
        schedulers: Member schedulers by name; members without one keep their learning rate.
    """

    def __init__(self, optimizer: OptimizerGroup, schedulers: Mapping[str, LRScheduler]) -> None:
        # the base class would step a schedule of its own, so its constructor is not called
        self.optimizer = optimizer
        self.schedulers = dict(schedulers)

    def step(self, epoch: int | None = None) -> None:
        """Step every member."""
        for scheduler in self.schedulers.values():
            scheduler.step()

    def get_last_lr(self) -> list[Any]:
        """Learning rates of all parameter groups that are scheduled."""
        return [lr for scheduler in self.schedulers.values() for lr in scheduler.get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        """Each member's state by its name."""
        return {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore each member's state."""
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(state_dict[name])
