"""Ranks for data loading: processes that share one model replica read the same data."""

from typing import TYPE_CHECKING

import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy

if TYPE_CHECKING:
    import lightning.pytorch as pl


def data_ranks(trainer: "pl.Trainer | None") -> tuple[int, int]:
    """Return the rank of this process among those that read different data, and their number.

    This is the global rank and world size, except under a ModelParallelStrategy, where processes that hold parts of one
    model read the same batches.
    """
    if trainer is None:
        return 0, 1
    if isinstance(trainer.strategy, ModelParallelStrategy):
        kwargs = trainer.strategy.distributed_sampler_kwargs
        return kwargs["rank"], kwargs["num_replicas"]
    return trainer.global_rank, trainer.world_size


def data_group(trainer: "pl.Trainer") -> dist.ProcessGroup | None:
    """Return the process group that spans the different data; None for the default group of all processes."""
    if isinstance(trainer.strategy, ModelParallelStrategy):
        return trainer.strategy.device_mesh["data_parallel"].get_group()
    return None


def is_first_reader(trainer: "pl.Trainer") -> bool:
    """Whether this process is the first of those that read the same samples."""
    if isinstance(trainer.strategy, ModelParallelStrategy):
        return bool(trainer.strategy.device_mesh["tensor_parallel"].get_local_rank() == 0)
    return True
