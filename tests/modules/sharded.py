"""Runs of SAEs on two CPU processes, under whatever strategy, for the tests of sharding."""

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.multiprocessing as mp

from sae_lightning.modules import SAEModule


def trainer(strategy: Any, devices: int, max_steps: int, folder: Path, **kwargs: Any) -> pl.Trainer:
    """A quiet trainer on the CPU."""
    return pl.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_steps=max_steps,
        default_root_dir=folder,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"enable_checkpointing": False, **kwargs},
    )


def _run(rank: int, size: int, port: int, job: Callable[..., Any], arguments: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ |= {"WORLD_SIZE": str(size), "RANK": str(rank)}
    job(rank, *arguments)


def on_processes(size: int, job: Callable[..., Any], *arguments: Any) -> None:
    """Call `job(rank, *arguments)` on several processes that find each other as Lightning's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_run, args=(size, port, job, arguments), nprocs=size)


def held(module: SAEModule, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Bytes of the parameters, and of the optimizer's state, that this process holds."""
    from sae_lightning.nn.rows import local

    state = [v for values in optimizer.state.values() for v in values.values() if isinstance(v, torch.Tensor)]
    return sum(local(p).nbytes for p in module.parameters()), sum(local(v).nbytes for v in state if v.ndim)
