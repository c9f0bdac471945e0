"""The command line within the test process, and small finished runs that tests read from."""

import contextlib
import fcntl
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
EXPERIMENTS = ("spade", "relu", "jumprelu", "topk", "compare")
MEMBERS = ("spade", "relu", "jumprelu", "topk")
QUIET = ("--trainer.enable_model_summary", "false", "--progress.refresh_rate", "0")
QUIET += ("--visibility.max_samples", "0")  # fitting bounds takes seconds: tests that look at them ask for them
STEPS, BATCH_SIZE = 20, 64  # configs/debug/fast.yaml


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


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file below a folder, by its relative path: bytes of a file, target of a link."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.fixture(autouse=True)
def _unchanged_process() -> Iterator[None]:
    with unchanged_process():
        yield


@pytest.fixture(scope="session")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a fast run of a shipped experiment after fit, validate, test and predict: read it only."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # of all processes of pytest-xdist: the first one that asks for a run makes it

    def get(name: str) -> Path:
        folder = root / "experiments" / name
        folder.parent.mkdir(exist_ok=True)
        with folder.with_suffix(".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = folder.with_suffix(".done")
            if not done.exists():
                args = [*fast(name, folder), "--data.eval_batch_size", 256, "--receptive_fields.resolution", 20]
                for command in ("fit", "validate", "test", "predict"):
                    given = [] if command == "fit" else ["--ckpt_path", folder / "checkpoints" / "last.ckpt"]
                    outcome = run_cli(command, *args, *given)
                    assert outcome.code == 0, f"{command} {name}: {outcome.err[-3000:]}"
                done.touch()
        return folder

    return get
