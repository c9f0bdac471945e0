"""The command line, in this process or another, and what a run leaves in its folder."""

import contextlib
import csv
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs"
EXPERIMENTS = ("spade", "relu", "jumprelu", "topk", "compare")
MEMBERS = ("spade", "relu", "jumprelu", "topk")
QUIET = ("--trainer.enable_model_summary", "false", "--progress.refresh_rate", "0")
QUIET += ("--visibility.max_samples", "0")  # fitting bounds takes seconds: tests that look at them ask for them
STEPS, BATCH_SIZE = 20, 64  # configs/debug/fast.yaml

# a run of seconds
MODEL = ["--model", "SpaDE", "--model.d_sae", 8, "--model.n_init_samples", 64]
DATA_ARGS = ["--data", "SeparabilityDataModule", "--data.n_per_concept", 200, "--data.n_val_per_concept", 20]
DATA_ARGS += ["--data.n_test_per_concept", 20, "--data.batch_size", 16]
TRAINER = ["--trainer.max_steps", 10, "--trainer.max_epochs", -1, "--trainer.log_every_n_steps", 5]
TRAINER += ["--trainer.num_sanity_val_steps", 0, "--figures.on_validation", "false", *QUIET]
TINY = [*MODEL, *DATA_ARGS, *TRAINER]


@dataclass
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str
    warnings: list[str]


@contextlib.contextmanager
def unchanged_process() -> Iterator[None]:
    """Take back what a run changes in its process: environment variables and the number of threads."""
    environ, threads = dict(os.environ), torch.get_num_threads()
    try:
        yield
    finally:
        for name in set(os.environ) - set(environ):
            del os.environ[name]
        for name, value in environ.items():
            if not name.startswith("PYTEST_"):
                os.environ[name] = value
        torch.set_num_threads(threads)


def run_cli(*args: object) -> Outcome:
    """Run `sae-lightning ARGS` in this process; an exception other than SystemExit is passed on (a traceback)."""
    from sae_lightning.cli import main

    out, err = io.StringIO(), io.StringIO()
    code = 0
    with unchanged_process(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        os.environ.pop("SAE_LIGHTNING_TRACEBACK", None)
        os.environ["COLUMNS"] = "200"
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main([str(arg) for arg in args])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else int(bool(end.code))
    return Outcome(code, out.getvalue(), err.getvalue(), [str(warning.message) for warning in caught])


def run_process(
    *args: object, check: bool = True, timeout: float = 120, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    """Run `python -m sae_lightning ARGS` in a fresh process, by default from the repository root."""
    command = [sys.executable, "-m", "sae_lightning", *map(str, args)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=timeout, cwd=cwd, env=process_environment()
    )
    assert not check or done.returncode == 0, done.stderr[-5000:]
    return done


def process_environment() -> dict[str, str]:
    """This environment, with one thread per process."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def fast(name: str, run_dir: Path) -> list[str]:
    """Arguments of a shipped experiment with the overlay configs/debug/fast.yaml, in `run_dir`."""
    files = CONFIGS / "separability" / f"{name}.yaml", CONFIGS / "debug" / "fast.yaml"
    return ["-c", str(files[0]), "-c", str(files[1]), "--run_dir", str(run_dir), *QUIET]


def refused(outcome: Outcome, *words: str) -> str:
    """Check that a command ended as wrong input should end, with status 2 and a message; returns the message."""
    assert outcome.code == 2
    for word in words:
        assert word in outcome.err, outcome.err
    assert "Traceback" not in outcome.err
    return outcome.err


# ---------------------------------------------------------------------- what a run leaves


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder, by its relative path: bytes of a file, target of a link."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def last(run_dir: Path) -> Path:
    """The newest checkpoint of a run."""
    return run_dir / "checkpoints" / "last.ckpt"


def rows(run_dir: Path) -> list[dict[str, str]]:
    """The rows of a run's metrics.csv."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def results(run_dir: Path) -> dict[str, Any]:
    """What a run's results.json says."""
    from sae_lightning import load_results

    return load_results(run_dir / "results.json")


def events(folder: Path) -> Any:
    """All that TensorBoard reads in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    accumulator.Reload()
    return accumulator
