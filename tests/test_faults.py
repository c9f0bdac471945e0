"""Signals and deaths: SIGTERM ends a run in good order, a rank that dies ends the others, and all of them go on."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytest
import torch
import torch.distributed.distributed_c10d as c10d
from safetensors.torch import save_file

from sae_lightning import TopKSAE
from sae_lightning.callbacks import GracefulStop
from sae_lightning.callbacks.checkpoint_files import newest_checkpoint
from sae_lightning.run.checkpoint import read_checkpoint
from tests.helpers.processes import PROCESSES, as_rank, free_port, is_running, redirect
from tests.helpers.resuming import STEPS, arguments, check_ending, ending, finish, start
from tests.helpers.runs import CONFIGS, ROOT, process_environment

TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"]
SIGTERM_STATUS = 143
PROBE = ["--trainer.callbacks+=tests.test_faults.Pace"]


class Pace(pl.Callback):
    """Makes every step last as long as a test needs to strike in its midst, and tells when training goes."""

    def __init__(self, seconds: float = 0.02, folder: str = "") -> None:
        self.seconds = seconds
        self.folder = folder

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        if self.folder:
            Path(self.folder, f"{trainer.global_rank}").write_text(str(trainer.global_step))
        time.sleep(self.seconds)


def rank(number, port, args, log):
    """One of several processes that train together, as torchrun starts them."""
    redirect(log)
    as_rank(number, port)
    from lightning.pytorch.utilities import rank_zero_only

    from sae_lightning.cli import main

    rank_zero_only.rank = number
    main([str(arg) for arg in args])


def start_two(args, log):
    port = free_port()
    processes = [PROCESSES.Process(target=rank, args=(n, port, args, f"{log}-{n}.log")) for n in (0, 1)]
    for process in processes:
        process.start()
    return processes


def wait_for(folder, step, processes, n=2):
    """Wait until all ranks have made a step."""
    deadline = time.monotonic() + 90
    while True:
        steps = [
            int(path.read_text() or 0) if path.exists() else 0 for path in (Path(folder, str(i)) for i in range(n))
        ]
        if min(steps) >= step:
            return
        assert time.monotonic() < deadline
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)


def pace(tmp_path, seconds=0.02):
    folder = tmp_path / "pace"
    folder.mkdir(exist_ok=True)
    for path in folder.iterdir():
        path.unlink()
    return folder, [*PROBE, "--trainer.callbacks.folder", folder, "--trainer.callbacks.seconds", seconds]


def logs(path):
    return "".join(found.read_text() for found in sorted(path.parent.glob(f"{path.name}*.log")))


# ---------------------------------------------------------------------- SIGTERM


@pytest.mark.slow
@pytest.mark.parametrize("name", ["spade", "side by side", "accumulated"])
def test_sigterm_saves_the_last_step_and_the_run_goes_on_exactly(name, undisturbed, tmp_path):
    expected, _ = undisturbed(name)
    run_dir = tmp_path / "run"
    folder, probe = pace(tmp_path)
    process = PROCESSES.Process(
        target=rank, args=(0, free_port(), [*arguments(name, run_dir), *probe], f"{run_dir}-0.log")
    )
    process.start()
    wait_for(folder, 9, [process], n=1)
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    text = logs(run_dir)
    assert process.exitcode == SIGTERM_STATUS, text[-3000:]
    newest = newest_checkpoint(run_dir / "checkpoints")
    step = read_checkpoint(newest)["global_step"]
    assert 9 <= step < STEPS
    assert step - int(Path(folder, "0").read_text()) in (0, 1)
    assert f"SIGTERM: training ends after step {step}; resume with --ckpt_path" in text
    assert "Traceback" not in text
    assert finish(start(name, run_dir), run_dir)
    check_ending(run_dir, expected)


def children(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextlib.contextmanager
def paced(tmp_path, args, step=9, n=1):
    """A run of the command line in a process of its own, from when it has made a step; with its descendants, it ends
    with the test.
    """
    folder, probe = pace(tmp_path)
    command = [sys.executable, "-m", "sae_lightning", *map(str, [*args, *probe])]
    with open(f"{tmp_path / 'run'}-0.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=process_environment())
    found = []
    try:
        wait_for(folder, step, [SimpleNamespace(is_alive=lambda: process.poll() is None)], n)
        found += children(process.pid)
        yield process, found, folder
    finally:
        process.kill()
        process.wait()
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["side by side", "drawn ahead"])
def test_sigterm_ends_a_run_that_waits_for_a_stopped_process_in_good_order(name, undisturbed, tmp_path):
    """The process that it waits for computes members of a comparison, or draws batches."""
    run_dir = tmp_path / "run"
    with paced(tmp_path, arguments(name, run_dir)) as (process, others, folder):
        for pid in others:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1)
        waits_at = Path(folder, "0").read_text()
        time.sleep(0.5)
        assert Path(folder, "0").read_text() == waits_at
        assert others
        os.kill(process.pid, signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(30) == SIGTERM_STATUS  # on a busy machine; torch takes 5 s to end its workers
        print(f"{name}: ended {time.monotonic() - began:.1f} s after SIGTERM")
        text = logs(run_dir)
        assert not any(map(is_running, others))
    step = read_checkpoint(newest_checkpoint(run_dir / "checkpoints"))["global_step"]
    assert step == int(waits_at) + 1  # the one that it waited for
    assert f"SIGTERM: training ends after step {step}; resume with --ckpt_path" in text
    assert f"(step {step})" in text
    assert finish(start(name, run_dir), run_dir)
    check_ending(run_dir, undisturbed(name)[0])


class Stuck(TopKSAE):
    """It hangs for good in a step, as a process that waits for a disk or a device does."""

    def learn(self, x, target=None):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps == 17:
            time.sleep(10_000)
        return super().learn(x, target)


STUCK = ["--model.members.relu.class_path", "tests.test_faults.Stuck", "--model.members.relu.init_args.k", 2]


@pytest.mark.slow
def test_sigterm_ends_a_run_that_waits_for_a_process_that_hangs(tmp_path):
    run_dir = tmp_path / "run"
    with paced(tmp_path, [*arguments("side by side", run_dir), *STUCK], step=16) as (process, (child,), _):
        time.sleep(1)
        os.kill(process.pid, signal.SIGTERM)
        began = time.monotonic()
        assert process.wait(30) == SIGTERM_STATUS
        print(f"ended {time.monotonic() - began:.1f} s after SIGTERM")
        assert not is_running(child)
    text = logs(run_dir)
    assert f"(pid {child}) does not answer, so the step at hand is lost" in text
    assert "SIGTERM: training ends after step 16; resume with --ckpt_path" in text
    assert "(step 14)" in text
    assert read_checkpoint(newest_checkpoint(run_dir / "checkpoints"))["global_step"] == 14


@pytest.mark.slow
def test_a_process_that_hangs_ends_the_run_with_a_message_and_status_1(tmp_path):
    run_dir = tmp_path / "run"
    args = [*arguments("side by side", run_dir), *STUCK, "--model.process_timeout", 1]
    with paced(tmp_path, args, step=16) as (process, (child,), _):
        assert process.wait(30) == 1
        assert not is_running(child)
    text = logs(run_dir)
    assert f"error: the process that trains relu, topk (pid {child}) has not answered for 1 s" in text
    assert "raise process_timeout" in text
    assert "Traceback" not in text


@pytest.fixture(scope="module")
def undisturbed_two(tmp_path_factory):
    """What two processes leave when nobody disturbs them."""
    run_dir = tmp_path_factory.mktemp("two") / "run"
    for process in start_two([*arguments("compare", run_dir), *TWO], run_dir):
        process.join(120)
        assert process.exitcode == 0, logs(run_dir)[-3000:]
    return ending(run_dir)


@pytest.mark.slow
@pytest.mark.parametrize("who", [[0], [1], [0, 1]])
def test_sigterm_to_any_rank_ends_all_at_the_same_step(who, undisturbed_two, tmp_path):
    run_dir = tmp_path / "run"
    folder, probe = pace(tmp_path)
    processes = start_two([*arguments("compare", run_dir), *TWO, *probe], run_dir)
    wait_for(folder, 9, processes)
    for number in who:
        os.kill(processes[number].pid, signal.SIGTERM)
        time.sleep(0.03)
    for process in processes:
        process.join(60)
    text = logs(run_dir)
    assert processes[0].exitcode == SIGTERM_STATUS, text[-3000:]
    assert processes[1].exitcode == 0  # it would be taken for a failure by who started it
    assert len({Path(folder, str(n)).read_text() for n in (0, 1)}) == 1
    step = read_checkpoint(newest_checkpoint(run_dir / "checkpoints"))["global_step"]
    assert step == int(Path(folder, "0").read_text())
    for process in start_two([*arguments("compare", run_dir), *TWO], run_dir):
        process.join(120)
        assert process.exitcode == 0, logs(run_dir)[-3000:]
    check_ending(run_dir, undisturbed_two)


# ---------------------------------------------------------------------- SIGKILL


def kill_one(tmp_path, number, step, seconds=0.005):
    """Kill a rank at a step; how long the other one lives on, and the run's folder."""
    tmp_path.mkdir(exist_ok=True)
    run_dir = tmp_path / "run"
    folder, probe = pace(tmp_path, seconds)
    processes = start_two([*arguments("spade", run_dir), *TWO, *probe], run_dir)
    wait_for(folder, step, processes)
    processes[number].kill()
    began = time.monotonic()
    processes[1 - number].join(60)
    took = time.monotonic() - began
    hangs = processes[1 - number].is_alive()
    processes[1 - number].kill()
    assert not hangs, f"rank {1 - number} hangs a minute after rank {number} was killed at step {step}"
    assert processes[1 - number].exitcode not in (0, None)
    return took, run_dir


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_rank_that_is_killed_ends_the_other_and_the_run_goes_on(number, tmp_path):
    undisturbed_run = tmp_path / "undisturbed"
    for process in start_two([*arguments("spade", undisturbed_run), *TWO], undisturbed_run):
        process.join(120)
        assert process.exitcode == 0
    _, run_dir = kill_one(tmp_path / "killed", number, 16, 0.02)
    reason = Path(f"{run_dir}-{1 - number}.log").read_text()
    assert "Connection" in reason or "connection" in reason, reason[-2000:]
    assert read_checkpoint(newest_checkpoint(run_dir / "checkpoints"))["global_step"] >= 14  # one every 7 steps
    for process in start_two([*arguments("spade", run_dir), *TWO], run_dir):
        process.join(120)
        assert process.exitcode == 0, logs(run_dir)[-3000:]
    check_ending(run_dir, ending(undisturbed_run))


@pytest.mark.slow
def test_no_hang_in_50_runs_of_which_a_rank_is_killed(tmp_path):
    draw = random.Random(0)
    times = [kill_one(tmp_path / str(i), draw.randrange(2), draw.randrange(1, STEPS - 4))[0] for i in range(50)]
    print(f"the other rank ended after {max(times):.2f} s at most")


# ---------------------------------------------------------------------- a rank that hangs


class Limits(pl.Callback):
    """Checks that every group of ranks has the limit that the command line was given."""

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        (limit,) = (c.rank_timeout for c in trainer.callbacks if isinstance(c, GracefulStop))
        groups = [group for group in c10d._world.pg_map if group != c10d.GroupMember.NON_GROUP_MEMBER]
        assert len(groups) >= (2 if trainer.strategy.__class__.__name__ == "DDPStrategy" else 3)
        for group in groups:
            assert group._get_backend(torch.device("cpu")).options._timeout.total_seconds() == limit


SHARDED = ["-c", CONFIGS / "trainer" / "sharded.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", 2]
FSDP = ["-c", CONFIGS / "trainer" / "fsdp.yaml", "--trainer.accelerator", "cpu", "--trainer.devices", 2]
FSDP += ["--trainer.strategy.data_parallel_size", 2]
STRATEGIES = {"ddp": TWO, "sharded": SHARDED, "fsdp": FSDP}


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("name", ["ddp", "sharded", "fsdp"])
def test_a_rank_that_hangs_ends_the_run_in_time_and_the_run_goes_on(name, number, undisturbed_two, tmp_path):
    run_dir = tmp_path / "run"
    args = [*arguments("compare", run_dir), *STRATEGIES[name], "--checkpoint.every_n_steps", 7]
    args += ["--stop.rank_timeout", 3, "--trainer.callbacks+=tests.test_faults.Limits"]
    with paced(tmp_path, args, step=9, n=2) as (process, others, _):
        ranks = [process.pid, *others]
        assert len(ranks) == 2
        began = time.monotonic()
        os.kill(ranks[number], signal.SIGSTOP)
        status = process.wait(60)
        took = time.monotonic() - began
        text = logs(run_dir)
        assert status not in (0, None)
        deadline = time.monotonic() + 10
        while any(map(is_running, ranks)):
            assert time.monotonic() < deadline, "a rank is still there"
            time.sleep(0.1)
    print(f"{name}: ended {took:.1f} s after rank {number} was stopped")
    assert took > 2
    assert f"rank {1 - number} has waited 3 s for another one, which is stopped or hangs" in text
    assert "--stop.rank_timeout" in text
    assert read_checkpoint(newest_checkpoint(run_dir / "checkpoints"))["global_step"] == 7
    command = [
        sys.executable,
        "-m",
        "sae_lightning",
        *map(str, arguments("compare", run_dir)),
        *map(str, STRATEGIES[name]),
    ]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=process_environment())
    assert done.returncode == 0, done.stderr[-3000:]
    if name == "ddp":
        check_ending(run_dir, undisturbed_two)
    assert read_checkpoint(newest_checkpoint(run_dir / "checkpoints"))["global_step"] == STEPS


def test_nobody_waits_for_good():
    assert 0 < GracefulStop().rank_timeout <= 1800
    for limit in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"rank_timeout must be positive and finite, but is {limit}"):
            GracefulStop(limit)


# ---------------------------------------------------------------------- another number of ranks


class Seen(pl.Callback):
    """Writes down the activations that each rank trains on, by step."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.rows: dict[int, torch.Tensor] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch, batch_idx) -> None:
        self.rows[trainer.global_step] = batch.activations.clone()

    def on_train_end(self, trainer: pl.Trainer, *_: object) -> None:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        torch.save(self.rows, Path(self.folder, f"{trainer.global_step}-{trainer.global_rank}.pt"))


def run_on(processes, args, log):
    started = (
        start_two([*args, *TWO], log)
        if processes == 2
        else [PROCESSES.Process(target=rank, args=(0, free_port(), args, f"{log}-0.log"))]
    )
    if processes == 1:
        started[0].start()
    for process in started:
        process.join(120)
        assert process.exitcode == 0, logs(log)[-3000:]


@pytest.mark.parametrize("source", ["memory", "stream"])
@pytest.mark.parametrize(("before", "after"), [(1, 2), *(pytest.param(2, n, marks=pytest.mark.slow) for n in (1, 2))])
def test_a_run_goes_on_with_other_processes_and_sees_no_sample_twice(source, before, after, tmp_path):
    run_dir, seen = tmp_path / "run", tmp_path / "seen"
    args = [*arguments("spade", run_dir), "--trainer.limit_val_batches", 0, "--checkpoint.every_n_steps", 11]
    args += ["--trainer.callbacks+=tests.test_faults.Seen", "--trainer.callbacks.folder", seen]
    if source == "memory":
        x = torch.randn(500, 2, generator=torch.Generator().manual_seed(0))
        save_file({"x": x}, tmp_path / "x.safetensors")
        sizes = {i + j for i, a in enumerate(args) if str(a).startswith("--data.n_") for j in (0, 1)}
        args = [a for i, a in enumerate(args) if i not in sizes]
        args += ["--data", "TensorDataModule", "--data.path", tmp_path / "x.safetensors"]
    args += ["--data.batch_size", 8]
    run_on(before, [*args, "--trainer.max_steps", 11], run_dir)
    resume = [a for a in args if a not in ("--overwrite", "true")]
    resume += ["--ckpt_path", newest_checkpoint(run_dir / "checkpoints"), "--trainer.max_steps", 22]
    run_on(after, resume, run_dir)
    first = [torch.load(path, weights_only=True) for path in sorted(seen.glob("11-*.pt"))]
    second = [torch.load(path, weights_only=True) for path in sorted(seen.glob("22-*.pt"))]
    assert (len(first), len(second)) == (before, after)
    assert all(sorted(rows) == list(range(11)) for rows in first)
    assert all(sorted(rows) == list(range(11, 22)) for rows in second)
    every = torch.cat([row for rows in (*first, *second) for row in rows.values()])
    assert len(every) == 11 * 8 * (before + after)  # all within the first epoch of 400 samples
    assert len(every.unique(dim=0)) == len(every)
    if source == "memory":
        assert len(torch.cat([every, x]).unique(dim=0)) == len(x)
    text = logs(run_dir)
    assert ("processes instead of" in text) == (before != after)
