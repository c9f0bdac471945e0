"""Gradient clipping of several SAEs, each by its own norm."""

from collections.abc import Iterable

import torch
from torch import Tensor


@torch.no_grad()
def clip_grad_norms(groups: Iterable[Iterable[Tensor]], max_norm: float) -> Tensor:
    """Scale the gradients of each group of parameters so that their joint norm is at most `max_norm`.

    The same as `torch.nn.utils.clip_grad_norm_` on one group after the other, in a few operations for all of them.

    Args:
        groups: Parameters of each group; those without a gradient are passed over.
        max_norm: Largest norm that is left as it is.

    Returns:
        Norms before clipping, `(n_groups,)`.
    """
    grads: list[Tensor] = []
    owners: list[int] = []
    n_groups = 0
    for group in groups:
        own = [parameter.grad for parameter in group if parameter.grad is not None]
        grads += own
        owners += [n_groups] * len(own)
        n_groups += 1
    if not grads:
        return torch.zeros(n_groups)
    wide = torch.float32 if any(grad.itemsize < 4 for grad in grads) else None  # norms of half-precision gradients
    squares = torch.stack(torch._foreach_norm(grads, 2, wide)).square()
    owner = torch.tensor(owners, device=squares.device)
    norms = squares.new_zeros(n_groups).index_add_(0, owner, squares).sqrt()
    factors = (max_norm / (norms + 1e-6)).clamp_max_(1.0)
    if factors.device.type != "cpu" or bool((factors < 1).any()):
        torch._foreach_mul_(grads, list(factors.index_select(0, owner).unbind()))
    return norms
