"""Latents spread over processes: each holds the rows of some of them, and all see the same samples.

Pre-codes and codes are then those of a process's own latents, `(..., d_sae / size)`. What needs all latents is found by
the collective operations here: sums over latents (reconstructions, regularizers), the k largest, the simplex.
"""

from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sae_lightning.nn.search import simplex_threshold


class Sharding:
    """The latents of an SAE, in equal shares in the order of the processes of a group.

    Every process computes the same loss. So the gradient of what all hold alike (a sum over latents) is the same
    everywhere, and that of what is used on each process for its own latents only (`replicate`) is to be summed.

    Args:
        group: The processes.
        d_sae: Number of latents, a multiple of the number of processes.

    Raises:
        ValueError: If the latents cannot be shared out equally.
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
        """Sum over processes; the gradient is that of the sum."""
        return cast("Tensor", _Sum.apply(x, self))  # type: ignore[no-untyped-call]

    def replicate(self, x: Tensor) -> Tensor:
        """The same tensor, whose gradient is the sum over processes."""
        return cast("Tensor", _Replicate.apply(x, self))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def gather(self, x: Tensor) -> Tensor:
        """Side by side along the last dimension, `(..., d)` to `(..., size * d)`; no gradient."""
        if x.numel() == 0:  # for all processes alike: they see the same samples
            return x.new_zeros(*x.shape[:-1], self.size * x.shape[-1])
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(self.size)]
        dist.all_gather(parts, x.contiguous(), group=self.group)
        return torch.cat(parts, -1)

    @torch.no_grad()
    def maximum(self, x: Tensor) -> Tensor:
        """Largest over processes, element by element; no gradient."""
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
        """A value for each latent from those of this process's own, `(d_local,)` to `(d_sae,)`."""
        everywhere = own.new_full((self.d_sae,), empty)
        everywhere[self.own] = own
        return everywhere

    def among_own(self, latents: Tensor) -> Tensor:
        """Which of some latents this process holds, counted from its first, for int64 `(n,)`."""
        return latents[(latents >= self.own.start) & (latents < self.own.stop)] - self.own.start

    def most_on_one(self, latents: Tensor) -> int:
        """How many of some latents are on the process that holds most of them."""
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
        rows = v.reshape(v.shape[:-1].numel(), v.shape[-1])  # a process may hold none of some latents
        values, latents = rows.topk(min(width, rows.shape[-1]), dim=-1)
        n, found = values.shape
        candidates = values
        if found < width:
            candidates = torch.cat([values, values.new_full((n, width - found), -torch.inf)], -1)
        # stable: of equal pre-codes those of the first processes are taken, and k in all
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
    r"""The projection `functional.k_sparse` of rows whose parts lie on several processes.

    Each process offers its own k largest; the k largest of these, in each row, are kept.

    Args:
        v: This process's pre-codes, `(..., d)`; `d` may differ between processes.
        k: Number of codes to keep of each row in all.
        sharding: The processes.
        width: How many each process offers; at least `k`, or the largest `d`; None for equal shares of all latents.

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
        # the threshold of any part of a row lies below that of the row: Newton's steps rise from there
        tau = sharding.maximum(simplex_threshold(rows - own_largest) + (own_largest - largest))
        rows = rows - largest
        least = None  # the smallest support of each row so far
        while True:
            over = (rows - tau).clamp_min_(0)
            sums = sharding.total(torch.cat([over.sum(-1, keepdim=True), (over > 0).sum(-1, keepdim=True)], -1))
            total, count = sums[:, :1], sums[:, 1:]
            # a pre-code within rounding of tau may come back: only a support that shrank asks for another step
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
    r"""The projection `functional.sparsemax` of rows whose parts lie on several processes.

    Newton's steps on the common threshold, each with the sums and supports of all processes: as exact as on one.

    Args:
        v: This process's pre-codes, `(..., d_local)`, in float32 or float64.
        sharding: The processes.

    Returns:
        This process's codes, in the shape of `v`.
    """
    return cast("Tensor", _Sparsemax.apply(v, sharding))  # type: ignore[no-untyped-call]
