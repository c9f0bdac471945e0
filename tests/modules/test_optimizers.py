import copy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)

from sae_lightning.modules.optimizers import (
    OptimizerGroup,
    OptimizerRecord,
    SchedulerGroup,
    adam,
    change_arguments,
    make_scheduler,
)
from tests.helpers.modules import make
from tests.helpers.tensors import assert_same

MAKERS: dict[str, Any] = {"a": partial(Adam, lr=0.1), "b": partial(SGD, lr=0.2, momentum=0.9), "c": AdamW}


def parameters() -> dict[str, list[nn.Parameter]]:
    generator = torch.Generator().manual_seed(0)
    return {name: [nn.Parameter(torch.randn(3, generator=generator)) for _ in range(2)] for name in MAKERS}


def make_group(params: dict[str, list[nn.Parameter]]) -> tuple[OptimizerGroup, SchedulerGroup]:
    optimizers = {name: MAKERS[name](params[name]) for name in MAKERS}
    group = OptimizerGroup(optimizers)
    schedulers = {"a": CosineAnnealingLR(optimizers["a"], 10), "b": StepLR(optimizers["b"], 2, 0.5)}
    return group, SchedulerGroup(group, schedulers)


def total(params: dict[str, list[nn.Parameter]]) -> Tensor:
    return torch.stack([(p - 1).square().sum() for own in params.values() for p in own]).sum()


def train(params: dict[str, list[nn.Parameter]], group: Any, schedule: Any, steps: int) -> None:
    for _ in range(steps):

        def closure() -> Tensor:
            group.zero_grad()
            loss = total(params)
            loss.backward()
            return loss

        before = total(params)
        assert torch.equal(group.step(closure), before)
        schedule.step()


def test_members_step_as_if_alone() -> None:
    together, alone = parameters(), parameters()
    train(together, *make_group(together), 7)
    for name, maker in MAKERS.items():
        optimizer = maker(alone[name])
        schedules = {"a": partial(CosineAnnealingLR, T_max=10), "b": partial(StepLR, step_size=2, gamma=0.5)}
        schedule = schedules[name](optimizer) if name in schedules else None
        for _ in range(7):
            optimizer.zero_grad()
            total({name: alone[name]}).backward()
            optimizer.step()
            if schedule:
                schedule.step()
        assert_same([p.data for p in together[name]], [p.data for p in alone[name]])


def test_state_round_trip() -> None:
    first, second = parameters(), parameters()
    group, schedule = make_group(first)
    train(first, group, schedule, 5)
    states = copy.deepcopy((group.state_dict(), schedule.state_dict()))
    assert states[0].keys() == {"state", "param_groups"}  # as one optimizer's
    assert states[1].keys() == {"a", "b"}

    restored, restored_schedule = make_group(second)
    restored.load_state_dict(states[0])
    restored_schedule.load_state_dict(states[1])
    for name, own in first.items():
        for p, q in zip(own, second[name], strict=True):
            q.data.copy_(p.data)
    train(first, group, schedule, 5)
    train(second, restored, restored_schedule, 5)
    assert_same(restored.state_dict(), group.state_dict())
    assert_same(restored_schedule.state_dict(), schedule.state_dict())
    assert_same(
        {n: [p.data for p in own] for n, own in second.items()}, {n: [p.data for p in v] for n, v in first.items()}
    )


def test_states_by_name_of_older_checkpoints_are_read() -> None:
    first, second = parameters(), parameters()
    group, schedule = make_group(first)
    train(first, group, schedule, 5)
    restored, _ = make_group(second)
    restored.load_state_dict({name: o.state_dict() for name, o in group.optimizers.items()})
    assert_same(restored.state_dict(), group.state_dict())


def test_states_whose_parameters_have_names_are_read() -> None:
    """As FSDP gathers them: `params` and `state` go by names instead of numbers."""
    first, second = parameters(), parameters()
    group, schedule = make_group(first)
    train(first, group, schedule, 5)
    state = copy.deepcopy(group.state_dict())
    names = {i: f"layer.{9 - i}" for g in state["param_groups"] for i in g["params"]}
    named = {
        "state": {names[i]: value for i, value in reversed(state["state"].items())},
        "param_groups": [{**g, "params": [names[i] for i in g["params"]]} for g in state["param_groups"]],
    }
    restored, _ = make_group(second)
    restored.load_state_dict(named)
    assert_same(restored.state_dict(), group.state_dict())


@pytest.mark.parametrize("loaded", [False, True])
def test_parameter_groups_are_the_members_own(loaded: bool) -> None:
    group, _ = make_group(parameters())
    if loaded:
        group.load_state_dict(copy.deepcopy(group.state_dict()))
    members = [g for optimizer in group.optimizers.values() for g in optimizer.param_groups]
    assert len(members) == 3
    assert all(mine is theirs for mine, theirs in zip(group.param_groups, members, strict=True))
    group.param_groups[1]["lr"] = 0.7
    assert group.optimizers["b"].param_groups[0]["lr"] == 0.7


def test_learning_rates_follow_the_schedules() -> None:
    params = parameters()
    group, schedule = make_group(params)
    lrs = []
    for _ in range(4):
        train(params, group, schedule, 1)
        assert schedule.get_last_lr() == [g["lr"] for g in group.param_groups[:2]]
        lrs.append([g["lr"] for g in group.param_groups])
    assert [lr[1] for lr in lrs] == pytest.approx([0.2, 0.1, 0.1, 0.05])
    assert [lr[0] for lr in lrs] == sorted([lr[0] for lr in lrs], reverse=True)
    assert {lr[2] for lr in lrs} == {1e-3}


def test_zero_grad_reaches_all_members() -> None:
    params = parameters()
    group, _ = make_group(params)
    total(params).backward()
    group.zero_grad()
    assert all(p.grad is None for own in params.values() for p in own)


def test_schedulers() -> None:
    optimizer = adam([nn.Parameter(torch.zeros(2))])
    assert isinstance(optimizer, Adam)
    assert optimizer.param_groups[0]["lr"] == 1e-3
    assert make_scheduler(optimizer, None) is None
    assert isinstance(make_scheduler(optimizer, partial(ExponentialLR, gamma=0.9)), ExponentialLR)
    with pytest.raises(ValueError, match="lr_scheduler must step by training steps, which ReduceLROnPlateau cannot"):
        make_scheduler(optimizer, ReduceLROnPlateau)


def test_an_sae_without_a_schedule_gives_its_optimizer_alone() -> None:
    assert isinstance(make("relu").configure_optimizers(), SGD)
    config = make("spade").configure_optimizers()
    assert config["lr_scheduler"]["interval"] == "step"


CYCLES: dict[str, Any] = {
    "one": partial(OneCycleLR, total_steps=20, cycle_momentum=False),
    "many": partial(CyclicLR, base_lr=0.01, step_size_up=4, cycle_momentum=False),
    "cosine": lambda optimizer, max_lr: CosineAnnealingLR(optimizer, 20),
}


@pytest.mark.parametrize("cycle", CYCLES)
def test_a_lower_learning_rate_scales_all_that_a_schedule_makes_of_it(cycle: str) -> None:
    def rates(change_at: int) -> list[float]:
        optimizer = SGD([nn.Parameter(torch.zeros(2))], lr=0.2)
        schedule = CYCLES[cycle](optimizer, max_lr=0.1)
        found = []
        for step in range(16):
            if step == change_at:
                change_arguments(optimizer, schedule, {"lr": (0.2, 0.05)})
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return found

    before, changed = rates(-1), rates(6)
    assert changed[:6] == before[:6]
    assert changed[6:] == pytest.approx([lr / 4 for lr in before[6:]], rel=1e-9)


def test_another_peak_of_a_one_cycle_schedule_is_refused_instead_of_ignored() -> None:
    def record(max_lr: float) -> OptimizerRecord:
        optimizer = SGD([nn.Parameter(torch.zeros(2))], lr=0.2)
        return OptimizerRecord.of(optimizer, CYCLES["one"](optimizer, max_lr=max_lr))

    assert record(0.1).changes(record(0.1), "model") == {}
    with pytest.raises(
        ValueError, match=r"model\.lr_scheduler must have max_lr = 0\.1, as in the checkpoint, but has 0"
    ):
        record(0.05).changes(record(0.1), "model")


WRONG = (
    None,
    True,
    -1,
    2**70,
    float("nan"),
    "x",
    [],
    [1],
    {},
    {"a": 1},
    {1: 1},
    {"lr": "x"},
    {"lr": None},
    torch.zeros(2),
)


@pytest.mark.parametrize("key", [None, "optimizer", "defaults", "lr_scheduler", "schedule", "lr"])
def test_what_a_checkpoint_says_of_its_optimizer_is_checked(key: str | None) -> None:
    optimizer = SGD([nn.Parameter(torch.zeros(2))], lr=0.2)
    record = OptimizerRecord.of(optimizer, StepLR(optimizer, 2, 0.5))
    assert OptimizerRecord.read(record._asdict()) == record
    refused = 0
    for value in WRONG:
        saved: Any = copy.deepcopy(record._asdict())
        if key is None:
            saved = value
        elif key == "lr":
            saved["defaults"]["lr"] = value
        else:
            saved[key] = value
        try:
            changes = record.changes(OptimizerRecord.read(saved), "model")
        except ValueError:
            refused += 1
        else:
            assert changes.get("lr", (1, 1))[0] > 0
    assert refused >= (len(WRONG) if key in (None, "optimizer") else 6)


@pytest.mark.parametrize("lr", [0.0, -0.1])
def test_a_rate_that_cannot_be_scaled_is_refused(lr: float) -> None:
    def record(lr: float) -> OptimizerRecord:
        return OptimizerRecord("torch.optim.sgd.SGD", {"lr": lr}, None, {})

    with pytest.raises(ValueError, match=rf"model\.optimizer must have lr = {lr}, as in the checkpoint, but has 0\.2"):
        record(0.2).changes(record(lr), "model")
