"""Members that train side by side in processes end as those that train in turn, bit for bit."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from sae_lightning.data.batch import as_batch
from sae_lightning.modules import Comparison, ComposedSAE, ReLUSAE
from sae_lightning.modules.processes import MemberProcesses
from sae_lightning.nn import Affine, Orthant, Regularizer
from tests.helpers.data import BATCH, D_IN, Clusters, stream
from tests.helpers.modules import PRESETS, make
from tests.helpers.processes import is_running
from tests.helpers.tensors import assert_same
from tests.helpers.trainers import fit

STEPS = 40
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": {"gradient_clip_val": 0.5},
    "accumulated": {"accumulate_grad_batches": 2, "gradient_clip_val": 0.5},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "64-true": {"precision": "64-true"},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """A product may be rounded otherwise on two threads."""
    torch.set_num_threads(1)


class Log(pl.Callback):
    """Remembers what was logged at every step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rows.append(dict(trainer.callback_metrics))


def compare(processes: int, names: Any = PRESETS, seed: int = 1) -> Comparison:
    pl.seed_everything(seed, verbose=False)
    return Comparison(D_IN, {name: PRESETS[name] for name in names}, processes)


def train(processes: int, **options: Any) -> tuple[Any, ...]:
    """All that training leaves in a comparison."""
    module, log = compare(processes), Log()
    trainer = fit(module, STEPS, log_every_n_steps=1, callbacks=[log], **options)
    return dict(module.state_dict()), trainer.optimizers[0].state_dict(), log.rows, module.samples_seen


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("plain", "accumulated") else pytest.mark.slow) for n in OPTIONS]
)
def test_side_by_side_is_in_turn(name: str) -> None:
    expected = train(1, **OPTIONS[name])
    assert expected[2][0].keys() >= {"topk/train/l0", "spade/train/loss", "relu/train/regularizer"}
    for processes in (2, 4):
        assert_same(train(processes, **OPTIONS[name]), expected)


def test_more_processes_than_members() -> None:
    module, alone = compare(7, ["topk", "relu"]), make("relu")
    fit(module, 5)
    fit(alone, 5)
    assert_same(module.saes()["relu"].state_dict(), alone.state_dict())


def test_a_run_is_resumed_with_other_processes(tmp_path: Path) -> None:
    whole, first, second = compare(1), compare(2), compare(3, seed=9)
    fit(whole, STEPS, Clusters(50))
    fit(first, STEPS // 2, Clusters(50)).save_checkpoint(tmp_path / "half.ckpt")
    fit(second, STEPS, Clusters(50), ckpt_path=tmp_path / "half.ckpt")
    assert_same(dict(second.state_dict()), dict(whole.state_dict()))


class Spare(ReLUSAE):
    """An SAE with a parameter that no loss depends on."""

    def __init__(self, d_in: int) -> None:
        super().__init__(d_in, 8)
        self.spare = nn.Parameter(torch.ones(3))


def test_a_parameter_without_a_gradient_gets_none() -> None:
    results = []
    for processes in (1, 2):
        pl.seed_everything(1, verbose=False)
        module = Comparison(D_IN, {"a": Spare, "b": Spare}, processes)
        trainer = fit(module, 3)
        results.append((dict(module.state_dict()), trainer.optimizers[0].state_dict()))
        for sae in module.saes().values():
            assert torch.equal(sae.spare, torch.ones(3))
    assert_same(*results)


# -- memory and processes -------------------------------------------------------------------------------------------


def test_processes_end_and_memory_is_given_back() -> None:
    torch.set_num_threads(2)
    module = compare(3)
    seen: list[list[Any]] = []

    class Count(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            seen.append(multiprocessing.active_children())

    fit(module, 2, callbacks=[Count()])
    assert [len(children) for children in seen] == [2, 2]
    assert not any(process.is_alive() for process in seen[0])
    assert torch.get_num_threads() == 2
    before = [p.clone() for p in module.parameters()]
    fit(module, 2)  # a second time
    assert not all(torch.equal(p, q) for p, q in zip(module.parameters(), before, strict=True))
    twin = compare(1)
    twin.load_state_dict(module.state_dict())


def test_gradients_are_weighted() -> None:
    saes = {name: make(name) for name in ("relu", "jumprelu")}
    x = stream(Clusters(), BATCH)
    for sae in saes.values():
        sae.initialize(x)
        sae.learn(x).terms["loss"].backward()
    expected = {name: [2.5 * p.grad for p in sae.parameters()] for name, sae in saes.items()}
    for sae in saes.values():
        sae.zero_grad()
    processes = MemberProcesses(saes, 2, 60.0)
    for factor in (2.0, 0.5):  # accumulated
        processes.learn(as_batch(x), with_l0=False)
        processes.backward([factor, factor])
    for name, sae in saes.items():
        for p, grad in zip(sae.parameters(), expected[name], strict=True):
            torch.testing.assert_close(p.grad, grad)
    processes.close()
    assert all(p.grad is None for sae in saes.values() for p in sae.parameters())


@pytest.mark.parametrize("n", [0, 1, 3])
def test_bad_numbers_of_processes(n: int) -> None:
    with pytest.raises(ValueError, match=f"n must lie between 2 and the number of SAEs, 2, but is {n}"):
        MemberProcesses({"a": make("relu"), "b": make("relu")}, n, 60.0)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_limits(timeout: float) -> None:
    with pytest.raises(ValueError, match=f"process_timeout must be positive and finite, but is {timeout}"):
        Comparison(D_IN, {"a": PRESETS["relu"]}, 2, timeout)


def test_a_checkpoint_does_not_hold_the_limit() -> None:
    module = Comparison(D_IN, {"a": PRESETS["relu"]}, 2, 5.0)
    assert module.process_timeout == 5
    assert "process_timeout" not in module.describe()["init_args"]
    assert "process_timeout" not in module.hparams


@pytest.mark.parametrize("processes", [0, -2])
def test_bad_processes(processes: int) -> None:
    with pytest.raises(ValueError, match=f"processes must be at least 1, but is {processes}"):
        compare(processes)


def test_without_fork_members_train_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "fork")
    module = compare(2, ["relu", "topk"])
    with pytest.warns(UserWarning, match=r"processes = 2 has no effect here: members train in turn"):
        fit(module, 2)
    assert module._side_by_side is None


# -- what goes wrong ------------------------------------------------------------------------------------------------


class Strange(Exception):  # noqa: N818
    """An exception that no pipe can carry."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__("strange")


class Failing(Regularizer):
    """Somebody's regularizer, which fails."""

    def __init__(self, d_sae: int, strange: bool) -> None:
        super().__init__(d_sae)
        self.strange = strange

    def forward(self, sae: Any, x: Tensor, out: Any) -> Tensor:
        raise Strange(1, 2) if self.strange else ValueError("a bad value")


@pytest.mark.parametrize("place", [0, 1])
@pytest.mark.parametrize("strange", [False, True])
def test_errors_of_members_are_raised(place: int, strange: bool) -> None:
    failing = partial(
        ComposedSAE, d_sae=8, encoder=Affine, projection=Orthant, regularizer=partial(Failing, strange=strange)
    )
    makers: list[Any] = [PRESETS["relu"]]
    makers.insert(place, failing)
    module = Comparison(D_IN, dict(zip("ab", makers, strict=True)), 2)
    expected = ValueError if not strange else RuntimeError if place == 1 else Strange
    with pytest.raises(expected, match="strange" if strange else "a bad value"):
        fit(module, 2)
    assert multiprocessing.active_children() == []
    assert module._side_by_side is None


def test_a_process_that_is_killed_is_told() -> None:
    class Kill(pl.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            for process in multiprocessing.active_children():
                os.kill(process.pid, signal.SIGKILL)
                process.join()

    module = compare(2, ["relu", "topk"])
    with pytest.raises(
        ChildProcessError, match=r"the process that trains topk \(pid \d+\) is gone \(exit code -9.*processes = 1"
    ):
        fit(module, 3, callbacks=[Kill()])
    assert multiprocessing.active_children() == []


class Stop(pl.Callback):
    """Stops the other processes once."""

    pids: tuple[int, ...] = ()

    def on_train_batch_end(self, *_: Any) -> None:
        if not self.pids:
            self.pids = tuple(process.pid or 0 for process in multiprocessing.active_children())
            for pid in self.pids:
                os.kill(pid, signal.SIGSTOP)


@pytest.mark.parametrize("batch_size", [BATCH, 50_000])
def test_a_process_that_is_stopped_is_told_and_ended_in_time(batch_size: int) -> None:
    """Whether this process waits for an answer, or for a batch to be taken that fills the pipe."""
    module, stop = compare(2, ["relu", "topk"]), Stop()
    module.process_timeout = 0.7
    began = time.monotonic()
    with pytest.raises(TimeoutError) as caught:
        fit(module, 3, Clusters(batch_size=batch_size), callbacks=[stop])
    assert 0.7 < time.monotonic() - began < 20
    (pid,) = stop.pids
    assert str(caught.value).startswith(f"the process that trains topk (pid {pid}) has not answered for 0.7 s")
    assert "process_timeout" in str(caught.value)
    assert not is_running(str(pid))
    assert module._side_by_side is None
    for name, parameter in module.named_parameters():
        assert parameter.isfinite().all(), name
    fit(module, 2, Clusters())  # and may be trained again


def test_a_slow_step_within_the_limit_is_waited_for() -> None:
    waking = []

    class Continue(Stop):
        def on_train_batch_end(self, *_: Any) -> None:
            super().on_train_batch_end()
            waking.append(subprocess.Popen(["sh", "-c", f"sleep 1; kill -CONT {self.pids[0]}"]))

    module = compare(2, ["relu", "topk"])
    fit(module, 3, callbacks=[Continue()])
    for process in waking:
        process.wait()
    expected = compare(1, ["relu", "topk"])
    fit(expected, 3)
    assert_same(dict(module.state_dict()), dict(expected.state_dict()))


MAKE = """
import multiprocessing, os, signal, sys
from sae_lightning.modules.processes import MemberProcesses
from tests.helpers.modules import make
processes = MemberProcesses({name: make("relu") for name in "abcd"}, 4, 60.0)
pids = [process.pid for process in multiprocessing.active_children()]
print(*pids, flush=True)
"""
ENDS = {
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "an error": ("raise KeyError", 1),
}


@pytest.mark.slow
@pytest.mark.parametrize(("end", "stopped"), [("killed", False), ("killed", True), ("an error", True)])
def test_processes_end_with_the_first_one(end: str, stopped: bool) -> None:
    """However it ends, and also where they are stopped, so that the system tells them nothing else."""
    stop = "for pid in pids: os.kill(pid, signal.SIGSTOP)\n" if stopped else ""
    done = subprocess.run(
        [sys.executable, "-c", MAKE + stop + ENDS[end][0]],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )  # returns when nobody holds its output any more
    assert done.returncode == ENDS[end][1], done.stderr
    pids = done.stdout.split()
    assert len(pids) == 3
    deadline = time.monotonic() + 20
    while any(map(is_running, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
