"""Gradient clipping of several SAEs, each by its own norm."""

from collections.abc import Callable, Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from sae_lightning.nn.rows import local


@torch.no_grad()
def clip_grad_norms(
    groups: Iterable[Iterable[Tensor]],
    max_norm: float,
    shard_group: Callable[[Tensor], dist.ProcessGroup | None] = lambda grad: None,
) -> Tensor:
    """Scale the gradients of each group of parameters so that their joint norm is at most `max_norm`.

    The same as `torch.nn.utils.clip_grad_norm_` on one group after the other, in a few operations for all of them.

    Args:
        groups: Parameters of each group; those without a gradient are passed over.
        max_norm: Largest norm that is left as it is.
        shard_group: Which processes each hold a part of a gradient; None where each holds all of it. They must be the
            same for all gradients that are held in parts.

    Returns:
        Norms before clipping, `(n_groups,)`.
    """
    grads: list[Tensor] = []
    owners: list[int] = []
    parts: list[int] = []
    over: dist.ProcessGroup | None = None
    n_groups = 0
    for group in groups:
        for parameter in group:
            if parameter.grad is None:
                continue
            found = shard_group(parameter.grad)
            if found is not None:
                over = found
                parts.append(len(grads))
            grads.append(local(parameter.grad))
            owners.append(n_groups)
        n_groups += 1
    if not grads and over is None:
        return torch.zeros(n_groups)
    wide = torch.float32 if any(grad.itemsize < 4 for grad in grads) else None  # norms of half-precision gradients
    squares = torch.stack(torch._foreach_norm(grads, 2, wide)).square()
    if over is not None:
        of_parts = squares[parts]
        dist.all_reduce(of_parts, group=over)
        squares[parts] = of_parts
    owner = torch.tensor(owners, device=squares.device)
    norms = squares.new_zeros(n_groups).index_add_(0, owner, squares).sqrt()
    factors = (max_norm / (norms + 1e-6)).clamp_max_(1.0)
    if factors.device.type != "cpu" or bool((factors < 1).any()):
        torch._foreach_mul_(grads, list(factors.index_select(0, owner).unbind()))
    return norms


@torch.no_grad()
def clip_grad_values(parameters: Iterable[Tensor], max_value: float) -> None:
    """Clip each gradient, element by element, to `-max_value` and `max_value`."""
    for parameter in parameters:
        if parameter.grad is not None:
            local(parameter.grad).clamp_(-max_value, max_value)
