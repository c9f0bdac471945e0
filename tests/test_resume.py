"""Runs that are killed, wherever it hurts, and end as if nothing had happened; and disks that do not take a file."""

import errno
import os
import random
import re
import resource
import signal

import pytest
import torch

from sae_lightning import SeparabilityDataModule, SpaDE
from sae_lightning.callbacks import RunCheckpoint
from sae_lightning.callbacks.checkpoint_files import newest_checkpoint
from sae_lightning.run.checkpoint import read_checkpoint
from tests.helpers.processes import PROCESSES, redirect
from tests.helpers.resuming import RUNS, arguments, check_ending, child, finish, kill_self_at, start, whole_or_absent
from tests.helpers.runs import contents, run_cli
from tests.helpers.trainers import make_trainer


def kill_and_resume(name, run_dir, kills, draw, undisturbed):
    """Kill a run at random moments, go on with it each time, and compare its ending with that of an undisturbed one."""
    expected, seconds = undisturbed(name)
    done = 0
    while done < kills:
        process = start(name, run_dir)
        process.join(draw.uniform(0.3, 1.0) * seconds)
        process.kill()
        if finish(process, run_dir):  # too late
            check_ending(run_dir, expected)
            seconds *= 0.8
            run_dir = run_dir.with_name(f"{run_dir.name}-")
        else:
            done += 1
            whole_or_absent(run_dir)
    assert finish(start(name, run_dir), run_dir)
    check_ending(run_dir, expected)


KILLS = [("spade", 2), *((name, 4) for name in RUNS)]


@pytest.mark.parametrize(
    ("name", "kills"), [pytest.param(name, kills, marks=pytest.mark.slow) for name, kills in KILLS]
)
def test_a_run_killed_again_and_again_ends_as_if_undisturbed(name, kills, undisturbed, tmp_path):
    kill_and_resume(name, tmp_path / name, kills, random.Random(f"{name} {kills}"), undisturbed)


@pytest.mark.slow
def test_20_kills_have_20_identical_endings(undisturbed, tmp_path):
    draw = random.Random(20)
    for i in range(20):
        kill_and_resume("compare", tmp_path / str(i), 1, draw, undisturbed)


@pytest.mark.slow
def test_a_run_killed_at_each_touch_of_the_disk_ends_as_if_undisturbed(undisturbed, tmp_path):
    expected, _ = undisturbed("spade")
    run_dir, kills = tmp_path / "spade", 0
    while not finish(start("spade", run_dir, kills + 1), run_dir):
        kills += 1
        whole_or_absent(run_dir)
    whole_or_absent(run_dir)
    check_ending(run_dir, expected)
    assert kills >= 10


def train(folder, kill_at):
    """Train without the command line, for two checkpoints that are due and one at the end."""
    redirect(f"{folder}.log")
    torch.set_num_threads(1)
    data = SeparabilityDataModule(n_per_concept=100, n_val_per_concept=10, n_test_per_concept=10, batch_size=16, seed=0)
    trainer = make_trainer(5, callbacks=[RunCheckpoint(str(folder), every_n_steps=2)])
    kill_self_at(kill_at)
    trainer.fit(SpaDE(2, 8, n_init_samples=64), data)


def test_a_kill_at_any_touch_of_the_disk_leaves_a_whole_checkpoint(tmp_path):
    processes = {}
    seen = set()
    for kill_at in range(1, 40):
        folder = tmp_path / str(kill_at) / "checkpoints"
        folder.parent.mkdir()
        process = processes[folder] = PROCESSES.Process(target=train, args=(folder, kill_at))
        process.start()
        done = finish(process, folder)
        whole_or_absent(folder.parent)
        newest = newest_checkpoint(folder)
        step = 0 if newest is None else read_checkpoint(newest)["global_step"]
        assert step >= max(seen, default=0)  # what was there once is never lost
        seen.add(step)
        if done:
            break
    assert done
    assert seen == {0, 2, 4, 5}
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step=4.ckpt", "step=5.ckpt"]


# ---------------------------------------------------------------------- before the first checkpoint


def test_a_run_without_a_checkpoint_says_how_to_go_on(tmp_path):
    run_dir = tmp_path / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    assert run_cli(*arguments("spade", run_dir)[:-2], "--trainer.fast_dev_run", "true").code == 0  # nothing in it yet
    (run_dir / "config.yaml").write_text("model: {}\n")
    outcome = run_cli(*arguments("spade", run_dir)[:-2])
    assert outcome.code == 2
    assert "replace it with --overwrite true (it has no checkpoint to resume from)" in outcome.err
    outcome = run_cli(*arguments("spade", run_dir)[:-2], "--ckpt_path", run_dir / "checkpoints" / "last.ckpt")
    assert outcome.code == 2
    assert "ended before its first checkpoint" in outcome.err


def test_a_checkpoint_that_has_no_link_yet_is_found(tmp_path):
    for step in (9, 10, 2):
        (tmp_path / f"step={step}.ckpt").touch()
    (tmp_path / "step=best.ckpt").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "step=10.ckpt"
    (tmp_path / "last.ckpt").symlink_to("step=9.ckpt")
    assert newest_checkpoint(tmp_path) == tmp_path / "last.ckpt"
    assert newest_checkpoint(tmp_path / "nowhere") is None


# ---------------------------------------------------------------------- other data

CHANGED = {
    "batch_size": (["--data.batch_size", 32], ["data.batch_size was 64 and is 32"]),
    "two": (["--data.variance", 0.5, "--data.radii", "[1,2]"], ["data.variance was", "data.radii was [1.5, 0.5]"]),
    "seed": (["--data.seed", 1], ["data.seed was 0 and is 1"]),
    "program's seed": (["--seed_everything", 1], ["data.seed was 0 and is 1"]),
}


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A run that ended after 14 steps: read it only."""
    run_dir = tmp_path_factory.mktemp("half") / "run"
    outcome = run_cli(*arguments("spade", run_dir), "--trainer.max_steps", 14)
    assert outcome.code == 0, outcome.err[-2000:]
    return run_dir


@pytest.mark.parametrize("case", CHANGED)
def test_a_run_does_not_go_on_with_other_data(case, half):
    args, words = CHANGED[case]
    before = contents(half)
    outcome = run_cli(*arguments("spade", half), *args)
    assert outcome.code == 2
    for word in [*words, "--allow_changed_data true"]:
        assert word in outcome.err
    assert "n_per_concept" not in outcome.err
    assert contents(half) == before


def test_a_run_goes_on_with_other_data_when_asked_to(half, tmp_path):
    args = [*arguments("spade", half), "--run_dir", tmp_path / "run", "--data.variance", 0.5, "--trainer.max_steps", 20]
    outcome = run_cli(*args, "--allow_changed_data", "true")
    assert outcome.code == 0, outcome.err[-2000:]
    (warning,) = [text for text in outcome.warnings if "other data" in text]
    assert "data.variance was" in warning
    checkpoint = read_checkpoint(newest_checkpoint(tmp_path / "run" / "checkpoints"))
    assert checkpoint["sae_lightning_data"]["init_args"]["variance"] == 0.5
    assert "allow_changed_data: false" in (tmp_path / "run" / "config.yaml").read_text()


# ---------------------------------------------------------------------- disks that do not take a file


@pytest.mark.parametrize("reason", ["ENOSPC", "EACCES", "EROFS"])
def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_spares_the_one_before(reason, tmp_path, monkeypatch):
    save, saved = torch.save, []

    def fail_second(checkpoint, file):
        if saved:
            file.write(b"half of a checkpoint")
            raise OSError(getattr(errno, reason), os.strerror(getattr(errno, reason)))
        saved.append(checkpoint["global_step"])
        save(checkpoint, file)

    monkeypatch.setattr(torch, "save", fail_second)
    run_dir = tmp_path / "run"
    outcome = run_cli(*arguments("spade", run_dir))
    folder = run_dir / "checkpoints"
    assert outcome.code == 1
    message = f"error: checkpoints cannot be written to '{folder}': {os.strerror(getattr(errno, reason))}"
    assert message in outcome.err.splitlines()
    assert "Traceback" not in outcome.err
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step=7.ckpt"]
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 7


def small_disk(args, log):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
    child(args, log, None)


def test_a_disk_that_takes_no_whole_checkpoint_is_told_from_a_bug(tmp_path):
    """What the operating system says comes through torch's writer, which wraps it in an error of its own."""
    run_dir = tmp_path / "run"
    args = [*arguments("spade", run_dir), "--model.d_sae", 8_000, "--trainer.limit_val_batches", 0]
    process = PROCESSES.Process(target=small_disk, args=(args, tmp_path / "log"))
    process.start()
    process.join(120)
    assert process.exitcode == 1
    text = (tmp_path / "log").read_text()
    assert f"error: checkpoints cannot be written to '{run_dir / 'checkpoints'}': File too large" in text
    assert "Traceback" not in text
    assert list((run_dir / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("where", ["run_dir", "checkpoint.dirpath"])
def test_a_folder_that_cannot_be_written_is_refused_before_anything_is_lost(where, tmp_path):
    earlier, file = tmp_path / "earlier", tmp_path / "file"
    earlier.mkdir()
    (earlier / "config.yaml").write_text("model: {}\n")
    file.write_text("mine")
    before = contents(tmp_path)
    args = ["--run_dir", file / "run"] if where == "run_dir" else ["--checkpoint.dirpath", file / "checkpoints"]
    outcome = run_cli(*arguments("spade", earlier), *args)
    assert outcome.code == 2
    assert re.search(f"error: (the run|checkpoints) cannot be written to '{file}.*': Not a directory\n", outcome.err)
    assert "Traceback" not in outcome.err
    assert contents(tmp_path) == before
