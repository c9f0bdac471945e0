"""Projections and straight-through steps as differentiable functions of the pre-codes."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged where it is float32 or float64 already."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


# Up to this d_in, a CPU's BLAS can be several times slower where the narrow side comes last, forward or backward
# (seven times at 512 x 128 x 2): such products are transposed. They cost little beside the rest of a step, so autocast
# leaves them exact.
_NARROW = 16


def _exact(x: Tensor) -> AbstractContextManager[object]:
    """Keep a product in the precision of its operands, also under autocast."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def encode(x: Tensor, rows: Tensor) -> Tensor:
    r"""The encoder's product $x W^T$, whose backward pass is fast for any `d_in`.

    Args:
        x: Inputs, `(..., d_in)`.
        rows: Encoder rows, `(d_sae, d_in)`.

    Returns:
        Products, `(..., d_sae)`.
    """
    if rows.shape[-1] > _NARROW:
        return x @ rows.T
    with _exact(x):
        return x @ rows.T.contiguous()


def decode(codes: Tensor, atoms: Tensor) -> Tensor:
    r"""The decoder's product $z W$, fast for any `d_in`.

    Args:
        codes: Codes, `(..., d_sae)`.
        atoms: Dictionary, `(d_sae, d_in)`.

    Returns:
        Products, `(..., d_in)`.
    """
    if atoms.shape[-1] > _NARROW:
        return codes @ atoms
    with _exact(codes):
        return torch.nn.functional.linear(codes, atoms.T.contiguous())


def _above(v: Tensor, threshold: Tensor | float) -> Tensor:
    """One where `v` exceeds the threshold, zero elsewhere, in the type of `v`."""
    # writing straight into floats is ten times faster on a CPU than a bool mask and its conversion
    return torch.gt(v, threshold, out=torch.empty_like(v))


def squared_distance(x: Tensor, prototypes: Tensor) -> Tensor:
    r"""Squared Euclidean distances by one matrix product: $\|x\|^2 - 2 x \cdot w + \|w\|^2$.

    Only the product follows autocast; the norms and the sum stay in float32. The difference of large terms
    may come out slightly negative, by about the rounding error of the norms.

    Args:
        x: Inputs, `(..., d_in)`.
        prototypes: Prototypes, `(d_sae, d_in)`.

    Returns:
        Distances, `(..., d_sae)`.
    """
    product = at_least_float32(encode(x, prototypes))
    x_norm = at_least_float32(x).square().sum(-1, keepdim=True)
    w_norm = at_least_float32(prototypes).square().sum(-1)
    return torch.add(w_norm + x_norm, product, alpha=-2.0)


def _apply(function: type[Function], *args: Any) -> Tensor:
    """Call an autograd function with its tensors in at least float32."""
    args = tuple(at_least_float32(a) if isinstance(a, Tensor) else a for a in args)
    return cast("Tensor", function.apply(*args))  # type: ignore[no-untyped-call]


class _Sparsemax(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        shifted = v - v.amax(-1, keepdim=True)
        # sum(relu(v - tau)) - 1 is convex, decreasing and piecewise linear in tau. Both max - 1 and the threshold of
        # the full support lie below its root: Newton's steps from there rise to it, and the support only shrinks.
        tau = ((shifted.sum(-1, keepdim=True) - 1) / shifted.shape[-1]).clamp_min_(-1.0)
        codes, support = torch.empty_like(shifted), torch.empty_like(shifted)
        least = None  # the smallest support of each row so far
        while True:
            torch.sub(shifted, tau, out=codes).clamp_min_(0)
            count = torch.gt(codes, 0.0, out=support).sum(-1, keepdim=True)
            # a pre-code within rounding of tau may come back: only a support that shrank asks for another step
            if least is not None and not bool((count < least).any()):
                break
            least = count if least is None else torch.minimum(count, least)
            tau = tau + (codes.sum(-1, keepdim=True) - 1) / count
        ctx.save_for_backward(support, count)
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        support, count = ctx.saved_tensors
        grad = grad * support
        mean = grad.sum(-1, keepdim=True) / count
        return grad.sub_(support * mean)


def sparsemax(v: Tensor) -> Tensor:
    r"""Project onto the probability simplex: $\arg\min_{z \ge 0, \sum z = 1} \|z - v\|^2$.

    The solution is $z = \max(v - \tau, 0)$ with the threshold $\tau$ at which the codes sum to one. It is found
    by Newton's method on $\tau$, which needs no sort and ends after finitely many steps.

    Args:
        v: Pre-codes, `(..., d_sae)`; the last dimension is projected.

    Returns:
        Codes of the same shape, float32 or float64.

    Source: Martins and Astudillo (2016), arXiv 1602.02068; Condat (2016) for Newton's iteration.
    """
    return _apply(_Sparsemax, v)


class _KSparse(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, k: int) -> Tensor:
        values, indices = v.topk(k, dim=-1, sorted=False)
        codes = torch.zeros_like(v).scatter_(-1, indices, values.clamp_min_(0))
        ctx.save_for_backward(_above(codes, 0.0))
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (support,) = ctx.saved_tensors
        return grad * support, None


def k_sparse(v: Tensor, k: int) -> Tensor:
    r"""Project onto nonnegative vectors with at most `k` nonzeros: keep the `k` largest, then clip at zero.

    Args:
        v: Pre-codes, `(..., d_sae)`.
        k: Number of codes to keep, from 1 to `d_sae`.

    Returns:
        Codes of the same shape, float32 or float64.

    Source: Makhzani and Frey (2014), arXiv 1312.5663; Gao et al. (2024), arXiv 2406.04093.
    """
    return _apply(_KSparse, v, k)


def _near(v: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """One where `v` lies within half a bandwidth of the threshold (the rectangle kernel)."""
    distance = (v - threshold).abs_()
    return torch.lt(distance, bandwidth / 2, out=distance)


def _sum_to(grad: Tensor, like: Tensor) -> Tensor:
    return grad.sum_to_size(like.shape)


class _Jump(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        above = _above(v, threshold)
        ctx.save_for_backward(v, threshold, above)
        ctx.bandwidth = bandwidth
        return v * above

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        v, threshold, above = ctx.saved_tensors
        near = _near(v, threshold, ctx.bandwidth)
        to_threshold = _sum_to(near.mul_(grad), threshold) * (-threshold / ctx.bandwidth)
        return grad * above, to_threshold, None


def jump(v: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    r"""Keep what exceeds its threshold: $z_i = v_i H(v_i - \theta_i)$.

    The gradient with respect to the threshold is a straight-through estimate with a rectangle kernel of width
    `bandwidth`: $-\theta / \epsilon$ where $|v - \theta| < \epsilon / 2$, zero elsewhere.

    Args:
        v: Pre-codes, `(..., d_sae)`.
        threshold: Positive thresholds, `(d_sae,)`.
        bandwidth: Width $\epsilon$ of the kernel, in units of the pre-codes.

    Returns:
        Codes of the same shape, float32 or float64.

    Source: Rajamanoharan et al. (2024), arXiv 2407.14435.
    """
    return _apply(_Jump, v, threshold, bandwidth)


class _CountAbove(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(v, threshold)
        ctx.bandwidth = bandwidth
        return _above(v, threshold).sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        v, threshold = ctx.saved_tensors
        near = _near(v, threshold, ctx.bandwidth)
        return None, _sum_to(near.mul_(grad.unsqueeze(-1)), threshold) / -ctx.bandwidth, None


def count_above(v: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    r"""Number of pre-codes above their thresholds, $\sum_i H(v_i - \theta_i)$, with a straight-through gradient.

    The gradient reaches the thresholds only: $-1 / \epsilon$ where $|v - \theta| < \epsilon / 2$.

    Args:
        v: Pre-codes, `(..., d_sae)`.
        threshold: Positive thresholds, `(d_sae,)`.
        bandwidth: Width $\epsilon$ of the kernel, in units of the pre-codes.

    Returns:
        Counts, `(...)`.

    Source: Rajamanoharan et al. (2024), arXiv 2407.14435.
    """
    return _apply(_CountAbove, v, threshold, bandwidth)
