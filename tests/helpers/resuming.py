"""Runs that may be killed and go on: how they start, and what they leave in the end."""

import os
import signal
from pathlib import Path

import torch

from sae_lightning.callbacks.checkpoint_files import newest_checkpoint
from sae_lightning.run.checkpoint import read_checkpoint
from tests.helpers.processes import PROCESSES, redirect
from tests.helpers.runs import CONFIGS, QUIET, contents, events, last, results

STEPS = 40
# epochs of 6 steps
RUN = ["--data.n_per_concept", 100, "--data.n_val_per_concept", 10, "--data.n_test_per_concept", 10]
RUN += ["--data.batch_size", 64, "--trainer.max_steps", STEPS, "--checkpoint.every_n_steps", 7]
RUN += ["--trainer.log_every_n_steps", 3, "--trainer.val_check_interval", 8, "--trainer.num_sanity_val_steps", 0]
RUN += ["--figures.on_validation", "false", *QUIET]
RESAMPLE = ["--trainer.callbacks+=ResampleDeadLatents", "--trainer.callbacks.every_n_steps", 3]
RESAMPLE += ["--trainer.callbacks.dead_after", 2]
RUNS = {
    "spade": ["spade"],
    "relu": ["relu"],
    "jumprelu": ["jumprelu"],
    "topk": ["topk", "--model.dead_after", 3],
    "compare": ["compare"],
    "side by side": ["compare", "--model.processes", 2],
    "at the ends of epochs": ["spade", "--checkpoint.every_n_steps", 6],
    "resampled": ["topk", *RESAMPLE],
    "drawn ahead": ["spade", "--data.num_workers", 2],
    "accumulated": ["spade", "--trainer.accumulate_grad_batches", 2, "--trainer.val_check_interval", 5],
}


def arguments(name, run_dir):
    """What starts one of RUNS in a folder, or goes on with it."""
    config, *args = RUNS[name]
    found = ["fit", "-c", CONFIGS / "separability" / f"{config}.yaml", *RUN, *args, "--run_dir", run_dir]
    newest = newest_checkpoint(run_dir / "checkpoints")
    if newest is not None:
        return [*found, "--ckpt_path", newest]
    return [*found, "--overwrite", "true"]


def child(args, log, kill_at):
    """Run the command line in this process, which kills itself at its `kill_at`-th touch of the disk."""
    redirect(log)
    torch.set_num_threads(1)
    if kill_at is not None:
        kill_self_at(kill_at)
    from sae_lightning.cli import main

    main([str(arg) for arg in args])


def kill_self_at(count):
    """Count what changes names on the disk, and the writing of files before that; kill this process before one."""
    left = [count]

    def counted(function):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    save = torch.save

    def half_save(checkpoint, file):
        left[0] -= 1
        if left[0] == 0:
            file.write(b"half of a checkpoint")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        save(checkpoint, file)

    torch.save = half_save
    for name in ("replace", "symlink", "fsync", "unlink"):
        setattr(os, name, counted(getattr(os, name)))


def start(name, run_dir, kill_at=None):
    """Start one of RUNS, or go on with it, in a process of its own."""
    process = PROCESSES.Process(target=child, args=(arguments(name, run_dir), f"{run_dir}.log", kill_at))
    process.start()
    return process


def finish(process, run_dir):
    """Wait for a process; whether it ended by itself and not by a kill."""
    process.join(120)
    code = process.exitcode
    assert code in (0, -signal.SIGKILL), Path(f"{run_dir}.log").read_text()[-3000:]
    return code == 0


def whole_or_absent(run_dir):
    """Whether what lies there after a kill can be read: the newest checkpoint, and no heap of older ones."""
    folder = run_dir / "checkpoints"
    newest = newest_checkpoint(folder)
    if newest is not None:
        read_checkpoint(newest)
    assert len(list(folder.glob("step=*.ckpt"))) <= 3
    assert len(list(folder.glob(".*"))) <= 1


# ---------------------------------------------------------------------- endings


def difference(first, second, where=""):
    """Name the first place where two nested values differ, tensors bit by bit; None if nowhere."""
    if isinstance(first, dict) and isinstance(second, dict):
        if first.keys() != second.keys():
            return f"{where}: {first.keys() ^ second.keys()}"
        pairs = [(first[key], second[key], f"{where}/{key}") for key in first]
    elif isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        pairs = [(a, b, f"{where}/{i}") for i, (a, b) in enumerate(zip(first, second, strict=True))]
    elif isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        same = first.dtype == second.dtype and first.numpy().tobytes() == second.numpy().tobytes()
        return None if same else where
    else:
        return None if first == second else f"{where}: {first!r}, {second!r}"
    return next((found for pair in pairs if (found := difference(*pair)) is not None), None)


def ending(run_dir):
    """All that a finished run leaves, without clocks and names of folders."""
    checkpoint = read_checkpoint(last(run_dir))
    said = results(run_dir)
    del said["fit"]["wall_time_seconds"], said["fit"]["config"]
    curves = {}
    for folder in (run_dir, *sorted(run_dir.glob("members/*"))):
        found = events(folder)
        for tag in found.Tags()["scalars"]:
            if not tag.startswith("hparams/"):  # last values, no curve: who is killed at the very end repeats them
                curves[f"{folder.relative_to(run_dir)}:{tag}"] = [(e.step, e.value) for e in found.Scalars(tag)]
    files = {name for name in contents(run_dir) if "tfevents" not in name}
    return {
        "checkpoint": checkpoint,
        "results": said,
        "metrics.csv": (run_dir / "metrics.csv").read_text(),
        "table": (run_dir / "results.md").read_text(),
        "curves": curves,
        "files": sorted(files),
    }


def check_ending(run_dir, expected):
    """Check that a finished run left what another one did."""
    found = ending(run_dir)
    assert difference(expected, found) is None
    assert found["checkpoint"]["global_step"] == STEPS
