"""Optimizers and schedulers of the members of a comparison, stepped as one."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

__all__ = [
    "LRSchedulerCallable",
    "OptimizerCallable",
    "OptimizerGroup",
    "OptimizerRecord",
    "SchedulerGroup",
    "adam",
    "change_arguments",
    "check_moments",
    "clippable",
    "make_scheduler",
    "own_optimizer",
    "own_scheduler",
    "require_length",
]


def adam(params: Any) -> Optimizer:
    """Adam with learning rate 1e-3, in PyTorch's fused implementation: the default of every SAE."""
    return torch.optim.Adam(params, lr=1e-3, fused=True)


def clippable(optimizer: Optimizer) -> Optimizer:
    """Return the same optimizer, marked such that Lightning may clip its gradients under mixed precision.

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


_GROUP_RATES = ("max_lr", "min_lr")  # arguments that OneCycleLR keeps in the optimizer's groups


class OptimizerRecord(NamedTuple):
    """Optimizer and schedule in plain values, to be compared with those of a resumed run."""

    optimizer: str
    """Import path of its class."""
    defaults: dict[str, Any]
    """Its arguments, such as the learning rate."""
    lr_scheduler: str | None
    """Import path of the schedule's class; None without one."""
    schedule: dict[str, Any]
    """Arguments of the schedule, without the learning rate."""

    @classmethod
    def of(cls, optimizer: Optimizer, scheduler: LRScheduler | None) -> "OptimizerRecord":
        """Describe a new optimizer and its schedule, before their first step."""
        schedule = {} if scheduler is None else _plain_values(vars(scheduler))
        for changing in ("base_lrs", "last_epoch"):
            schedule.pop(changing, None)
        schedule |= {key: optimizer.param_groups[0][key] for key in _GROUP_RATES if key in optimizer.param_groups[0]}
        name = None if scheduler is None else _class_path(scheduler)
        return cls(_class_path(optimizer), _plain_values(optimizer.defaults), name, schedule)

    @classmethod
    def read(cls, saved: Any) -> "OptimizerRecord":
        """Read the record in a checkpoint, which may be damaged or hostile.

        Raises:
            ValueError: If it is no such record.
        """
        kinds = {"optimizer": str, "defaults": dict, "lr_scheduler": str | None, "schedule": dict}
        if not isinstance(saved, dict) or saved.keys() != kinds.keys():
            raise ValueError(f"must be a mapping with the keys {list(kinds)}")
        for key, kind in kinds.items():
            value = saved[key]
            if not isinstance(value, kind):
                raise ValueError(
                    f"{key} must be of type {getattr(kind, '__name__', kind)}, but is {type(value).__name__}"
                )
            if isinstance(value, dict) and not (
                all(isinstance(name, str) for name in value) and _plain_values(value).keys() == value.keys()
            ):
                raise ValueError(f"{key} must hold plain values by name")
        return cls(**saved)

    def changes(self, saved: "OptimizerRecord", name: str) -> dict[str, tuple[Any, Any]]:
        """Compare with the record of a checkpoint, and check that training can be resumed from it.

        Args:
            saved: How it was trained.
            name: The argument that both belong to, for messages.

        Returns:
            Arguments of the optimizer that have changed: before, and now.

        Raises:
            ValueError: If the class of the optimizer or the schedule, or a number of the schedule, has changed, or if
                the learning rate was 0, which cannot be scaled.
        """
        for kind in ("optimizer", "lr_scheduler"):
            before, now = getattr(saved, kind), getattr(self, kind)
            if before != now:
                raise ValueError(
                    f"{name}.{kind} must be that of the checkpoint, {before}, but is {now}: give it as it was, or "
                    "start a new run"
                )
        for key, (before, now) in _changes(saved.schedule, self.schedule).items():
            raise ValueError(
                f"{name}.lr_scheduler must have {key} = {before}, as in the checkpoint, but has {now}: give it as it "
                "was, or start a new run"
            )
        found = _changes(saved.defaults, self.defaults)
        before, now = found.get("lr", (1, 1))
        if not isinstance(before, float | int) or not before > 0:
            raise ValueError(
                f"{name}.optimizer must have lr = {before}, as in the checkpoint, but has {now}: start a new run"
            )
        return found


def change_arguments(
    optimizer: Optimizer, scheduler: LRScheduler | None, changes: Mapping[str, tuple[Any, Any]]
) -> None:
    """Set other arguments of an optimizer that was restored from a checkpoint.

    A learning rate that a schedule has changed meanwhile is scaled, as are those that the schedule goes by.

    Args:
        optimizer: The optimizer.
        scheduler: Its schedule, or None.
        changes: What each argument was, and is now.
    """
    for key, (before, now) in changes.items():
        for group in optimizer.param_groups:
            if key != "lr":
                group[key] = now
                continue
            for rate in group.keys() & {"lr", "initial_lr", *_GROUP_RATES}:
                group[rate] = group[rate] * now / before
        if key == "lr":
            for schedule in [] if scheduler is None else [scheduler, *getattr(scheduler, "_schedulers", ())]:
                for rates in vars(schedule).keys() & {"base_lrs", "max_lrs"}:
                    setattr(schedule, rates, [lr * now / before for lr in getattr(schedule, rates)])


_MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "momentum_buffer", "square_avg", "grad_avg", "sum")


def check_moments(optimizer: Optimizer) -> None:
    """Check that restored optimizer states have the shapes of their parameters: fused kernels do not check.

    Raises:
        ValueError: If a moment has another shape or layout than its parameter, or a step is no single number.
    """
    for parameter, state in optimizer.state.items():
        for key, value in state.items() if isinstance(state, dict) else ():
            if not isinstance(value, Tensor):
                continue
            if (key in _MOMENTS and value.shape != parameter.shape) or (key == "step" and value.numel() != 1):
                raise ValueError(
                    f"the checkpoint's optimizer has {key} of shape {tuple(value.shape)} for a parameter of shape "
                    f"{tuple(parameter.shape)}: it is damaged, or of another optimizer"
                )


def _class_path(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


_PLAIN = (bool, int, float, str, type(None))


def _plain_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the numbers, strings and sequences of these; private attributes of a schedule are left out."""
    found = {}
    for key, value in values.items():
        items = list(value) if isinstance(value, (tuple, list)) else [value]
        if not key.startswith("_") and all(isinstance(item, _PLAIN) for item in items):
            found[key] = items if isinstance(value, (tuple, list)) else value
    return found


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {key: (before[key], now[key]) for key in before if key in now and before[key] != now[key]}


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
        """State of the parameters of all members."""
        return {parameter: state for o in self.optimizers.values() for parameter, state in o.state.items()}

    @state.setter
    def state(self, value: Any) -> None:
        """Ignore the base class: members have their own."""

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all members as one, with parameters numbered in the order of the members."""
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
        """Restore the state of each member; older checkpoints hold them by name."""
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


def own_optimizer(optimizer: Optimizer, name: str) -> Optimizer:
    """Return the optimizer of one SAE: its own in a group, or the only one."""
    return optimizer.optimizers[name] if isinstance(optimizer, OptimizerGroup) else optimizer


def require_length(scheduler: LRScheduler | None, n_steps: float) -> None:
    """Raise a ValueError where a schedule of a fixed length ends before training does.

    Args:
        scheduler: The schedule, or None.
        n_steps: Steps of training, possibly infinite.
    """
    length = getattr(scheduler, "total_steps", None)
    if length is not None and n_steps > length:
        raise ValueError(
            f"model.lr_scheduler {type(scheduler).__name__} must not end before training does, but its total_steps are "
            f"{length}, and training takes {n_steps} steps (trainer.max_steps, or max_epochs)"
        )


def own_scheduler(scheduler: Any, name: str) -> LRScheduler | None:
    """Return the schedule of one SAE: its own in a group, or the only one; None if there is none."""
    found: LRScheduler | None = scheduler.schedulers.get(name) if isinstance(scheduler, SchedulerGroup) else scheduler
    return found


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
        """Return the learning rates of all scheduled parameter groups."""
        return [lr for scheduler in self.schedulers.values() for lr in scheduler.get_last_lr()]

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each member, by name."""
        return {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore each member's state."""
        for name, scheduler in self.schedulers.items():
            scheduler.load_state_dict(state_dict[name])
