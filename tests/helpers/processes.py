"""Processes that tests start, as ranks or by themselves, and watch; and code that must end in time."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["sae_lightning.cli", "tests.helpers.resuming"])


def redirect(log: str | Path) -> None:
    """Append all that this process writes to a file."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)


def is_running(pid: int | str) -> bool:
    """Whether a process is there, and is no zombie."""
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def free_port() -> int:
    """An unused port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def as_rank(number: int, port: int) -> None:
    """Make this process one of several that find each other as Lightning's do."""
    os.environ.update(LOCAL_RANK=str(number), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)


def _rank(number: int, port: int, job: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    as_rank(number, port)
    job(number, *arguments)
    distributed.destroy_process_group()


def on_ranks(n: int, job: Callable[..., None], *arguments: Any) -> None:
    """Call `job(rank, *arguments)` on `n` processes, where a Trainer makes them one group."""
    torch.multiprocessing.spawn(_rank, args=(free_port(), job, arguments), nprocs=n)


@contextmanager
def deadline(seconds: float = 3.0) -> Iterator[None]:
    """Fail instead of hanging: raise a TimeoutError in whatever Python code runs after `seconds`."""

    def expire(*_: object) -> None:
        raise TimeoutError(f"still running after {seconds} s")

    before = signal.signal(signal.SIGALRM, expire)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
