"""Distribution of latents over processes: each holds the rows of some latents, and all see the same samples.

Pre-codes and codes on a process are those of its own latents, `(..., d_sae / size)`. Collective operations compute what
depends on all latents: sums over latents (reconstructions, regularizers), the k largest pre-codes, and sparsemax.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sae_lightning.nn.search import simplex_threshold


class Sharding:
    """Distribution of latents in equal, contiguous parts over the processes of a group, in the order of ranks.

    Every process computes the same loss. Therefore the gradient of a `sum` over latents is the same on all processes,
    and the gradient of a tensor that each process uses for its own latents (`replicate`) must be summed over processes.

    Args:
        group: The processes.
        d_sae: Number of latents, a multiple of the number of processes.

    Raises:
        ValueError: If `d_sae` is not a multiple of the number of processes.

    Example:
        >>> import torch.distributed as dist
        >>> from sae_lightning.backends.sharded import Sharding
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> Sharding(dist.group.WORLD, d_sae=4).own
        slice(0, 4, None)
        >>> dist.destroy_process_group()
    """

    def __init__(self, group: dist.ProcessGroup, d_sae: int) -> None:
        self.group = group
        self.size = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        if d_sae % self.size:
            raise ValueError(
                f"d_sae must be a multiple of the number of processes over which latents are sharded, {self.size}, "
                f"but is {d_sae}"
            )
        self.d_sae = d_sae
        self.d_local = d_sae // self.size
        self.own = slice(self.rank * self.d_local, (self.rank + 1) * self.d_local)

    def sum(self, x: Tensor) -> Tensor:
        """Sum over processes; each process receives the gradient of the sum."""
        return cast("Tensor", _Sum.apply(x, self))  # type: ignore[no-untyped-call]

    def replicate(self, x: Tensor) -> Tensor:
        """Return `x` unchanged; its gradient is summed over processes."""
        return cast("Tensor", _Replicate.apply(x, self))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def gather(self, x: Tensor) -> Tensor:
        """Concatenate over processes along the last dimension, `(..., d)` to `(..., size * d)`; no gradient."""
        if x.numel() == 0:  # on all processes, since they see the same samples
            return x.new_zeros(*x.shape[:-1], self.size * x.shape[-1])
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, -1)

    @torch.no_grad()
    def maximum(self, x: Tensor) -> Tensor:
        """Elementwise maximum over processes; no gradient."""
        return self._reduced(x, dist.ReduceOp.MAX)

    @torch.no_grad()
    def total(self, x: Tensor) -> Tensor:
        """Sum over processes; no gradient."""
        return self._reduced(x, dist.ReduceOp.SUM)

    def _reduced(self, x: Tensor, how: Any) -> Tensor:
        x = x.detach().clone(memory_format=torch.contiguous_format)
        if x.numel():
            dist.all_reduce(x, how, group=self.group)
        return x

    def scatter(self, own: Tensor, empty: Any = 0) -> Tensor:
        """Expand values of this process's latents, `(d_local,)`, to `(d_sae,)`, with `empty` for all others."""
        everywhere = own.new_full((self.d_sae,), empty)
        everywhere[self.own] = own
        return everywhere

    def among_own(self, latents: Tensor) -> Tensor:
        """Return those of `latents`, int64 `(n,)`, that this process holds, as indices into its own latents."""
        return latents[(latents >= self.own.start) & (latents < self.own.stop)] - self.own.start

    def most_on_one(self, latents: Tensor) -> int:
        """Return how many of the given latents are on the process that holds most of them."""
        return int(torch.bincount(latents // self.d_local, minlength=self.size).max())


class _Sum(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sharding: Sharding) -> Tensor:
        return sharding.total(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _Replicate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, sharding: Sharding) -> Tensor:
        ctx.sharding = sharding
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.sharding.total(grad), None


class _KSparse(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, k: int, width: int, sharding: Sharding) -> Tensor:
        rows = v.reshape(v.shape[:-1].numel(), v.shape[-1])  # a process may hold none of the dead latents
        values, latents = rows.topk(min(width, rows.shape[-1]), dim=-1)
        n, found = values.shape
        candidates = values
        if found < width:
            candidates = torch.cat([values, values.new_full((n, width - found), -torch.inf)], -1)
        # stable, so that all processes choose the same k of equal pre-codes
        order = sharding.gather(candidates).sort(dim=-1, descending=True, stable=True).indices[:, :k]
        chosen = torch.zeros(n, sharding.size * width, dtype=torch.bool, device=v.device).scatter_(1, order, True)
        chosen = chosen[:, sharding.rank * width : sharding.rank * width + found]
        codes = torch.zeros_like(rows).scatter_(-1, latents, values.clamp_min(0).masked_fill_(~chosen, 0)).view(v.shape)
        ctx.save_for_backward(codes)
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        (codes,) = ctx.saved_tensors
        return grad * (codes > 0), None, None, None


def k_sparse_over(v: Tensor, k: int, sharding: Sharding, width: int | None = None) -> Tensor:
    r"""Apply `functional.k_sparse` to rows that are distributed over several processes.

    All processes exchange the k largest pre-codes of their own part of each row, and keep the k largest of these.

    Args:
        v: This process's pre-codes, `(..., d)`; `d` may differ between processes.
        k: Number of codes to keep per row over all processes.
        sharding: The processes.
        width: Number of candidates per process and row: `k`, or the largest `d` if that is smaller. None if all latents
            are projected.

    Returns:
        This process's codes, in the shape of `v`.
    """
    arguments = (v, k, min(k, sharding.d_local) if width is None else width, sharding)
    return cast("Tensor", _KSparse.apply(*arguments))  # type: ignore[no-untyped-call]


class _Sparsemax(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, sharding: Sharding) -> Tensor:
        rows = v.reshape(-1, v.shape[-1])
        own_largest = rows.amax(-1, keepdim=True)
        largest = sharding.maximum(own_largest)
        # start Newton's iteration at a lower bound: the threshold of a part of a row is below that of the row
        tau = sharding.maximum(simplex_threshold(rows - own_largest) + (own_largest - largest))
        rows = rows - largest
        least = None  # the smallest support of each row so far
        while True:
            over = (rows - tau).clamp_min_(0)
            sums = sharding.total(torch.cat([over.sum(-1, keepdim=True), (over > 0).sum(-1, keepdim=True)], -1))
            total, count = sums[:, :1], sums[:, 1:]
            # stop unless a support shrank: within rounding of tau, a pre-code may enter the support again
            if least is not None and not bool((count < least).any()):
                break
            least = count if least is None else torch.minimum(count, least)
            tau = tau + (total - 1) / count
        codes = over.view(v.shape)
        ctx.sharding = sharding
        ctx.save_for_backward(codes, count)
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        codes, count = ctx.saved_tensors
        support = codes > 0
        grad = grad * support
        mean = ctx.sharding.total(grad.sum(-1, keepdim=True)) / count.view(*grad.shape[:-1], 1)
        return grad - support * mean, None


def sparsemax_over(v: Tensor, sharding: Sharding) -> Tensor:
    r"""Apply `functional.sparsemax` to rows that are distributed over several processes.

    Newton's iteration on the common threshold uses sums over all processes, so it is as exact as on one process.

    Args:
        v: This process's pre-codes, `(..., d_local)`, in float32 or float64.
        sharding: The processes.

    Returns:
        This process's codes, in the shape of `v`.
    """
    return cast("Tensor", _Sparsemax.apply(v, sharding))  # type: ignore[no-untyped-call]
