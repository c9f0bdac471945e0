"""Small finished runs that tests read from, a process that tests leave as they found it, and ways to run a test."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.runs import TINY, fast, run_cli, unchanged_process

torch.set_warn_always(True)  # what torch would say once in a process, to whichever test is first


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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small finished run: read it only, or copy it."""
    run_dir = tmp_path_factory.mktemp("tiny") / "run"
    outcome = run_cli("fit", *TINY, "--run_dir", run_dir)
    assert outcome.code == 0, outcome.err[-3000:]
    return run_dir


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[dict[str, Any], float]]:
    """Outputs and duration of each run of `tests.helpers.resuming` that is not killed."""
    from tests.helpers.processes import PROCESSES
    from tests.helpers.resuming import ending, finish, start

    endings: dict[str, tuple[dict[str, Any], float]] = {}

    def get(name: str) -> tuple[dict[str, Any], float]:
        if name not in endings:
            run_dir = tmp_path_factory.mktemp("undisturbed") / name
            warm = PROCESSES.Process(target=abs, args=(0,))  # the first process waits for the imports
            warm.start()
            warm.join()
            began = time.perf_counter()
            assert finish(start(name, run_dir), run_dir)
            endings[name] = ending(run_dir), time.perf_counter() - began
        return endings[name]

    return get


@pytest.fixture
def global_rng() -> Iterator[None]:
    """Leave torch's global random state as it was."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.fixture(params=[16, 0], ids=["narrow", "wide"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run a test through both ways of taking the products; whether it is the one for small d_in."""
    monkeypatch.setattr("sae_lightning.nn.functional._NARROW", request.param)
    return bool(request.param)


@pytest.fixture
def any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches are worth the sparse way, too."""
    monkeypatch.setattr("sae_lightning.backends.sparse.backend._LEAST_WORK", 0)
