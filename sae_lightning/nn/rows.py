"""Rows of latents, of which a process holds all or, where a parameter is a DTensor, some."""

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is a DTensor."""
    return hasattr(tensor, "to_local")  # to import their class takes a while, and most programs need none


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, with its gradient: all of it, unless it is a DTensor."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor; for a DTensor every process that holds a part of it must call this."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def own_rows(tensor: Tensor) -> slice:
    """Which rows of a tensor this process holds."""
    if not is_dtensor(tensor):
        return slice(0, len(tensor))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return slice(offset[0], offset[0] + shape[0])


@torch.no_grad()
def set_rows(tensor: Tensor, index: Tensor, rows: Tensor | float) -> None:
    """Do `tensor[index] = rows` on those of the rows that this process holds.

    Args:
        tensor: `(d_sae, ...)`, a DTensor or not.
        index: Which of its rows, int64 `(n,)`.
        rows: New values, `(n, ...)` or a number.
    """
    own = own_rows(tensor)
    here = (index >= own.start) & (index < own.stop)
    values = rows[here] if isinstance(rows, Tensor) else rows
    local(tensor)[index[here] - own.start] = values


def mean_of_live(values: Tensor, alive: Tensor, initial: float) -> Tensor:
    """Mean of a value of each latent over those that are alive, or `initial` where none is.

    Args:
        values: `(d_sae,)`, a DTensor or not.
        alive: Bool `(d_sae,)`.
        initial: What stands for the mean where no latent is alive.
    """
    live = full_tensor(values)[alive]
    return live.mean() if len(live) else live.new_tensor(initial)


@torch.no_grad()
def fill_rows(tensor: Tensor, values: Tensor) -> None:
    """Do `tensor.copy_(values)` on the rows that this process holds; `values` are those of all rows."""
    local(tensor).copy_(values[own_rows(tensor)])
