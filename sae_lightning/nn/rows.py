"""Access to rows of parameters that may be DTensors, of which each process holds only some rows."""

from typing import TYPE_CHECKING, TypeGuard

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_dtensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Return whether a tensor is a DTensor."""
    return hasattr(tensor, "to_local")  # importing the class is slow, and few programs need it


def local(tensor: Tensor) -> Tensor:
    """Return this process's part of a DTensor, with gradients; any other tensor as it is."""
    return tensor.to_local() if is_dtensor(tensor) else tensor


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the whole of a DTensor, which all processes that hold a part must call; any other tensor as it is."""
    return tensor.full_tensor() if is_dtensor(tensor) else tensor


def own_rows(tensor: Tensor) -> slice:
    """Return which rows of a tensor this process holds."""
    if not is_dtensor(tensor):
        return slice(0, len(tensor))
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(tensor.shape, tensor.device_mesh, tensor.placements)
    return slice(offset[0], offset[0] + shape[0])


@torch.no_grad()
def set_rows(tensor: Tensor, index: Tensor, rows: Tensor | float) -> None:
    """Do `tensor[index] = rows` for the rows that this process holds.

    Args:
        tensor: Tensor or DTensor, `(d_sae, ...)`.
        index: Rows to set, int64 `(n,)`.
        rows: New values, `(n, ...)` or a number.

    Example:
        >>> import torch
        >>> from sae_lightning.nn.rows import set_rows
        >>> weight = torch.zeros(3)
        >>> set_rows(weight, torch.tensor([0, 2]), torch.tensor([5.0, 6.0]))
        >>> weight
        tensor([5., 0., 6.])
    """
    own = own_rows(tensor)
    here = (index >= own.start) & (index < own.stop)
    values = rows[here] if isinstance(rows, Tensor) else rows
    local(tensor)[index[here] - own.start] = values


def mean_of_live(values: Tensor, alive: Tensor, initial: float) -> Tensor:
    """Return the mean of a per-latent value over the live latents.

    Args:
        values: Tensor or DTensor, `(d_sae,)`.
        alive: Which latents are alive, bool `(d_sae,)`.
        initial: Returned if no latent is alive.
    """
    live = full_tensor(values)[alive]
    return live.mean() if len(live) else live.new_tensor(initial)


@torch.no_grad()
def fill_rows(tensor: Tensor, values: Tensor) -> None:
    """Do `tensor.copy_(values)` for the rows that this process holds; `values` holds all rows."""
    local(tensor).copy_(values[own_rows(tensor)])
