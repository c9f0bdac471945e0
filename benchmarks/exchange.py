"""What two processes pay for exchanging gradients, as DDP does: a step, and the all-reduce after it, by gloo."""

import os
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.ours import Ours
from benchmarks.problem import Shape, make_problem

_REPEATS = 9


def _rank(rank: int, port: int, shapes: list[Shape], results: Any) -> None:
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for shape in shapes:
        contender = Ours("topk", make_problem(shape, torch.device("cpu")))
        x = contender.problem.batches[0]
        buffer = torch.zeros(2 * shape.d_in * shape.d_sae)
        times = []
        for _ in range(_REPEATS + 2):
            dist.barrier()
            start = time.perf_counter()
            contender.step(x)
            dist.barrier()
            between = time.perf_counter()
            dist.all_reduce(buffer)
            times.append((between - start, time.perf_counter() - between))
        if rank == 0:
            step, exchange = (statistics.median(column) for column in zip(*times[2:], strict=True))
            results.append([list(shape), step, exchange])
    dist.destroy_process_group()


def measure_exchange(shapes: list[Shape]) -> list[list[Any]]:
    """For each shape, seconds of a step and of the all-reduce of its gradients between two processes."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with torch.multiprocessing.Manager() as manager:
        results = manager.list()
        torch.multiprocessing.spawn(_rank, (port, shapes, results), nprocs=2)
        return list(results)
