"""Several optimizers and schedulers that step together, each with a state of its own."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "LRSchedulerCallable",
    "OptimizerCallable",
    "OptimizerGroup",
    "SchedulerGroup",
    "adam",
    "clippable",
    "follow_rates",
    "given_rates",
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


def given_rates(optimizer: Optimizer) -> list[float]:
    """The learning rate that each parameter group was made with, before any schedule."""
    return [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]


def follow_rates(optimizer: Optimizer, scheduler: LRScheduler | None, rates: list[float]) -> bool:
    """Scale the learning rates of a restored optimizer, and what a schedule makes of them, to others that are given.

    Args:
        optimizer: The optimizer.
        scheduler: What drives its learning rates, or None.
        rates: The learning rate that each of its parameter groups should have been made with.

    Returns:
        Whether one of them was made with another one.
    """
    restored = given_rates(optimizer)
    if restored == rates:
        return False
    factors = [now / was if was else 1.0 for now, was in zip(rates, restored, strict=True)]
    for group, factor in zip(optimizer.param_groups, factors, strict=True):
        for key in group.keys() & {"lr", "initial_lr", "max_lr", "min_lr"}:
            group[key] = group[key] * factor
    for driver in () if scheduler is None else (scheduler, *getattr(scheduler, "_schedulers", ())):
        for name in ("base_lrs", "max_lrs"):
            if hasattr(driver, name):
                setattr(driver, name, [lr * f for lr, f in zip(getattr(driver, name), factors, strict=True)])
    return True


class OptimizerGroup(Optimizer):
    """Steps a named set of optimizers as one, so that Lightning counts one step per batch.

    The parameter groups are the members' own, so clipping, unscaling and logging of learning rates work as for
    one optimizer; the state stays with each member, and is stored as that of one optimizer would be (which is what
    strategies that shard parameters take apart and put together).

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

    @property  # type: ignore[override]
    def state(self) -> dict[Tensor, Any]:
        """The state of every parameter, whosever it is."""
        return {parameter: state for o in self.optimizers.values() for parameter, state in o.state.items()}

    @state.setter
    def state(self, value: Any) -> None:
        """Ignore what the base class sets: members have their own."""

    def state_dict(self) -> dict[str, Any]:
        """The members' states as one, their parameters numbered through in the order of the members."""
        state: dict[int, Any] = {}
        groups: list[dict[str, Any]] = []
        first = 0
        for optimizer in self.optimizers.values():
            own = optimizer.state_dict()
            state |= {first + i: value for i, value in own["state"].items()}
            groups += [{**group, "params": [first + i for i in group["params"]]} for group in own["param_groups"]]
            first += sum(len(group["params"]) for group in own["param_groups"])
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore each member's state (also from checkpoints that hold them by name, as older ones do)."""
        parts = state_dict if state_dict.keys() == self.optimizers.keys() else self._by_member(state_dict)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(parts[name])
        self.param_groups = [group for o in self.optimizers.values() for group in o.param_groups]

    def _by_member(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        parts, groups, state = {}, list(state_dict["param_groups"]), state_dict["state"]
        for name, optimizer in self.optimizers.items():
            n_groups = len(optimizer.param_groups)
            own, groups = groups[:n_groups], groups[n_groups:]
            keys = [key for group in own for key in group["params"]]  # numbers, or names under FSDP
            number = {key: i for i, key in enumerate(keys)}
            parts[name] = {
                "state": {number[key]: state[key] for key in keys if key in state},
                "param_groups": [{**group, "params": [number[key] for key in group["params"]]} for group in own],
            }
        return parts


def alone(optimizer: Optimizer, scheduler: LRScheduler | None) -> Iterator[tuple[str, Optimizer, LRScheduler | None]]:
    """Each optimizer of a group by its SAE's name, with its schedule; the only one there is has an empty name."""
    if not isinstance(optimizer, OptimizerGroup):
        yield "", optimizer, scheduler
        return
    schedulers = scheduler.schedulers if isinstance(scheduler, SchedulerGroup) else {}
    for name, own in optimizer.optimizers.items():
        yield name, own, schedulers.get(name)


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
