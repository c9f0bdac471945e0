"""Encoders, projections and straight-through steps as differentiable functions."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from sae_lightning.nn.search import at_least_kth, largest_positions, simplex_threshold


def at_least_float32(x: Tensor) -> Tensor:
    """Return `x` in float32, or unchanged if it is float32 or float64 already."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


# Up to this d_in, products are transposed: a CPU's BLAS can be several times slower if the narrow dimension comes last
# (seven times at 512 x 128 x 2). They take little of a step's time, so they never run in half precision.
_NARROW = 16
_PIECES = 3  # a float32 equals the sum of three bf16 terms


def _exact(x: Tensor) -> AbstractContextManager[object]:
    """Context in which products keep the dtype of their operands, even under autocast."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return nullcontext()


def _product_dtype(weight: Tensor) -> torch.dtype:
    """Return the dtype of a product with a weight matrix: that of autocast if it is on, else the weight's own."""
    if weight.shape[-1] <= _NARROW:
        return torch.promote_types(weight.dtype, torch.float32)
    device = weight.device.type
    if weight.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype


def _by_rows(x: Tensor, rows: Tensor, by_row: Tensor | None = None, by_sample: Tensor | None = None) -> Tensor:
    """Return X W^T for inputs `(..., d_in)` and rows `(d_sae, d_in)`, plus one term per row and one per sample.

    In half precision the terms become additional columns of the two factors, so that they are summed within the product
    and the result is rounded only once. (Otherwise rounding errors would exceed the distance of points far from zero.)
    """
    with _exact(x):
        if x.dtype not in (torch.float32, torch.float64):
            if by_row is not None:
                x, rows = _with_terms(x, by_sample, 0), _with_terms(rows, by_row[:, None], _PIECES)
            return at_least_float32(x @ rows.T)
        v = x @ (rows.T if rows.shape[-1] > _NARROW else rows.T.contiguous())
        # in place, since each copy of the result is expensive
        if by_row is not None:
            v += by_row
        if by_sample is not None:
            v += by_sample
        return v


def _with_terms(matrix: Tensor, term: Tensor | None, begin: int) -> Tensor:
    """Append eight columns to a factor: from column `begin` on the pieces of a term (or zeros), elsewhere ones.

    The ones meet the pieces of the other factor's term. Eight, since accelerators are fast at multiples of eight.
    """
    whole = matrix.new_zeros(*matrix.shape[:-1], matrix.shape[-1] + 8)
    whole[..., : matrix.shape[-1]] = matrix
    columns = whole[..., matrix.shape[-1] :]
    other = _PIECES - begin
    columns[..., other : other + _PIECES] = 1
    if term is not None:
        for i in range(_PIECES):
            columns[..., begin + i] = term[..., 0]
            term = term - columns[..., begin + i, None]
    return whole


def _rows(x: Tensor) -> Tensor:
    """Flatten all but the last dimension, which may be 0: a process may hold none of the dead latents."""
    return x.reshape(x.shape[:-1].numel(), x.shape[-1])


def _to_rows(grad: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of X W^T with respect to W, G^T X, `(d_sae, d_in)`."""
    grad, x = _rows(grad), _rows(x)
    grad = grad.to(x.dtype)
    return grad.T @ x if x.shape[-1] > _NARROW else (x.T @ grad).T


class _Affine(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, center: Tensor | None, weight: Tensor, bias: Tensor | None, scale: float
    ) -> Tensor:
        ctx.scale = scale
        x = x if center is None else x - center
        # scale the smallest array
        x = (x if scale == 1.0 else x * scale).to(_product_dtype(weight))
        lowered = weight.to(x.dtype)
        ctx.save_for_backward(x, weight, lowered if lowered is not weight else None)
        return _by_rows(x, lowered, bias if bias is None or scale == 1.0 else bias * scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, lowered = ctx.saved_tensors
        needs_x, needs_center, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        to_x = by_latent = None
        if needs_x:
            to_x = decode(grad, weight if lowered is None else lowered).to(grad.dtype) * ctx.scale
        if needs_center or needs_bias:
            by_latent = _rows(grad).sum(0) * ctx.scale
        return (
            to_x,
            # summing over the batch first saves the product for the gradient of every input
            -(by_latent @ weight.to(grad.dtype)) if needs_center and by_latent is not None else None,
            _to_rows(grad, x) if needs_weight else None,
            by_latent if needs_bias else None,
            None,
        )


def affine(x: Tensor, center: Tensor | None, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    r"""Affine pre-codes, $s (W (x - c) + b)$.

    Args:
        x: Inputs, `(..., d_in)`.
        center: Vector $c$ subtracted from each input, `(d_in,)`, or None.
        weight: Encoder rows, `(d_sae, d_in)`.
        bias: Bias $b$, `(d_sae,)`, or None.
        scale: The factor $s$.

    Returns:
        Pre-codes `(..., d_sae)` in float32 or float64; only the product follows autocast or the dtype of the weight.

    Example:
        >>> import torch
        >>> from sae_lightning.nn.functional import affine
        >>> affine(torch.tensor([1.0, 2.0]), None, torch.eye(2), torch.tensor([0.0, 1.0]), scale=10.0)
        tensor([10., 30.])
    """
    arguments = (x, center, weight, bias, scale)
    return cast("Tensor", _Affine.apply(*arguments))  # type: ignore[no-untyped-call]


class _NegativeSquaredDistance(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, prototypes: Tensor, scale: Tensor, offset: Tensor | None) -> Tensor:
        # scale the smallest array
        factor = 2 * scale
        pulled = (x * factor).to(_product_dtype(prototypes))
        lowered = prototypes.to(pulled.dtype)
        # Norms are those of the rounded points: with other norms, rounding errors of large terms would not cancel in
        # the distance.
        rounded = x if pulled.dtype in (torch.float32, torch.float64) else pulled / factor.clamp_min(_tiny(factor))
        # ten times as fast as a sum of squares, which needs a temporary array
        x_norm = torch.linalg.vector_norm(at_least_float32(rounded), dim=-1, keepdim=True).square()
        w_norm = torch.linalg.vector_norm(at_least_float32(lowered), dim=-1).square()
        by_row = -scale * w_norm if offset is None else offset - scale * w_norm
        v = _by_rows(pulled, lowered, by_row, -scale * x_norm)
        ctx.save_for_backward(x.to(pulled.dtype), prototypes, scale, offset, v)
        return v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, prototypes, scale, offset, v = ctx.saved_tensors
        needs_x, needs_weight, needs_scale, needs_offset = ctx.needs_input_grad
        to_x = to_weight = None
        if needs_x or needs_weight:
            pull, lowered = (grad * (2 * scale)).to(x.dtype), prototypes.to(x.dtype)
            exact = at_least_float32(pull)  # round both terms alike, since their difference matters
        if needs_x:
            to_x = at_least_float32(decode(pull, lowered)) - x * exact.sum(-1, keepdim=True)
        if needs_weight:
            to_weight = at_least_float32(_to_rows(pull, x))
            to_weight -= lowered * _rows(exact).sum(0)[:, None]
        by_latent = None if offset is None else _rows(grad).sum(0)
        to_scale = None
        if needs_scale:
            along = torch.dot(grad.flatten(), v.flatten())
            if by_latent is not None:  # the scale multiplies v without its offset
                along = along - torch.dot(by_latent, offset)
            to_scale = along / scale.clamp_min(_tiny(scale))
        return to_x, to_weight, to_scale, by_latent if needs_offset else None


def _tiny(x: Tensor) -> float:
    """Return the smallest divisor by which 1 can be divided without overflow."""
    return torch.finfo(x.dtype).tiny


def negative_squared_distance(x: Tensor, prototypes: Tensor, scale: Tensor, offset: Tensor | None = None) -> Tensor:
    r"""Negative scaled squared distances by one product: $b - \lambda (\|x\|^2 - 2 x \cdot w + \|w\|^2)$.

    Only the product follows autocast or the dtype of the prototypes. In half precision, inputs and prototypes are
    rounded before their distance is computed, and the distance is rounded once: norms are computed in float32 and added
    within the product. Without offset, results can exceed zero by about the float32 rounding error of the norms.

    Args:
        x: Inputs, `(..., d_in)`.
        prototypes: Prototypes, `(d_sae, d_in)`.
        scale: The positive scalar $\lambda$.
        offset: The offsets $b$, `(d_sae,)`, or None.

    Returns:
        Pre-codes, `(..., d_sae)`, in float32 or float64.

    Example:
        >>> import torch
        >>> from sae_lightning.nn.functional import negative_squared_distance
        >>> negative_squared_distance(torch.tensor([3.0, 4.0]), torch.zeros(1, 2), scale=torch.tensor(2.0))
        tensor([-50.])
    """
    arguments = (x, prototypes, scale, offset)
    return cast("Tensor", _NegativeSquaredDistance.apply(*arguments))  # type: ignore[no-untyped-call]


def decode(codes: Tensor, atoms: Tensor) -> Tensor:
    r"""Product of codes and dictionary, $z W$, fast for any `d_in`.

    Args:
        codes: Codes, `(..., d_sae)`.
        atoms: Dictionary, `(d_sae, d_in)`.

    Returns:
        Products, `(..., d_in)`.

    Example:
        >>> import torch
        >>> from sae_lightning.nn.functional import decode
        >>> decode(torch.tensor([2.0, 0.0, 1.0]), torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 3.0]]))
        tensor([2., 3.])
    """
    if atoms.shape[-1] > _NARROW:
        return codes.to(atoms.dtype) @ atoms
    with _exact(codes):
        dtype = _product_dtype(atoms)
        return torch.nn.functional.linear(codes.to(dtype), atoms.to(dtype).T.contiguous())


def _above(v: Tensor, threshold: Tensor | float) -> Tensor:
    """Return 1 where `v` exceeds the threshold and 0 elsewhere, in the dtype of `v`."""
    # on a CPU ten times faster than converting a bool mask
    return torch.gt(v, threshold, out=torch.empty_like(v))


def _apply(function: type[Function], *args: Any) -> Tensor:
    """Call an autograd function with all tensors in at least float32."""
    args = tuple(at_least_float32(a) if isinstance(a, Tensor) else a for a in args)
    return cast("Tensor", function.apply(*args))  # type: ignore[no-untyped-call]


class _Sparsemax(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        rows = v.reshape(-1, v.shape[-1])
        shifted = rows - rows.amax(-1, keepdim=True)
        codes = shifted.sub_(simplex_threshold(shifted)).clamp_min_(0).view(v.shape)
        ctx.save_for_backward(codes)
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (codes,) = ctx.saved_tensors
        support = _above(codes, 0.0)
        count = support.sum(-1, keepdim=True)
        grad = grad * support
        mean = grad.sum(-1, keepdim=True) / count
        return grad.sub_(support.mul_(mean))


def sparsemax(v: Tensor) -> Tensor:
    r"""Project onto the probability simplex: $\arg\min_{z \ge 0, \sum z = 1} \|z - v\|^2$.

    The solution is $z = \max(v - \tau, 0)$ with the threshold $\tau$ for which the codes sum to one. Newton's method
    finds $\tau$ exactly, in finitely many steps and without sorting.

    Args:
        v: Pre-codes, `(..., d_sae)`; the last dimension is projected.

    Returns:
        Codes of the same shape, in float32 or float64.

    References:
        Martins and Astudillo (2016), From Softmax to Sparsemax, arXiv 1602.02068.
        Condat (2016), Fast projection onto the simplex and the l1 ball (Newton's iteration).

    Example:
        >>> import torch
        >>> from sae_lightning.nn.functional import sparsemax
        >>> sparsemax(torch.tensor([0.5, 0.0, -2.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """
    return _apply(_Sparsemax, v)


class _KSparse(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, k: int) -> Tensor:
        rows = v.reshape(-1, v.shape[-1])
        at_least = at_least_kth(rows, k)
        if rows.device.type != "cpu":  # no branches on values here, which would force an accelerator to synchronize
            values, latents = rows.topk(k, dim=-1, sorted=False)
            codes = torch.zeros_like(rows).scatter_(-1, latents, values.clamp_min_(0))
        elif at_least is None:
            positions = largest_positions(rows, k)
            values = rows.flatten()
            codes = torch.zeros_like(values).index_copy_(0, positions, values.index_select(0, positions))
        else:
            codes = at_least.mul_(rows.clamp_min(0))  # zero times -inf would be NaN
        codes = codes.view(v.shape)
        ctx.save_for_backward(codes)
        return codes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (codes,) = ctx.saved_tensors
        return _above(codes, 0.0).mul_(grad), None


def k_sparse(v: Tensor, k: int) -> Tensor:
    r"""Project onto nonnegative vectors with at most `k` nonzeros: keep the `k` largest, then clip at zero.

    Args:
        v: Pre-codes, `(..., d_sae)`.
        k: Number of codes to keep, from 1 to `d_sae`.

    Returns:
        Codes of the same shape, in float32 or float64.

    References:
        Makhzani and Frey (2014), arXiv 1312.5663; Gao et al. (2024), arXiv 2406.04093.

    Example:
        >>> import torch
        >>> from sae_lightning.nn.functional import k_sparse
        >>> k_sparse(torch.tensor([3.0, 1.0, -2.0, 2.0]), k=2)
        tensor([3., 0., 0., 2.])
    """
    return _apply(_KSparse, v, k)


def _near(v: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    """Return 1 where `v` is within half a bandwidth of the threshold, 0 elsewhere (rectangular kernel)."""
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
    r"""Keep pre-codes above their threshold: $z_i = v_i H(v_i - \theta_i)$.

    The gradient with respect to the threshold is a straight-through estimate with a rectangular kernel of width
    `bandwidth`: $-\theta / \epsilon$ where $|v - \theta| < \epsilon / 2$, zero elsewhere.

    Args:
        v: Pre-codes, `(..., d_sae)` or in any shape.
        threshold: Positive thresholds, `(d_sae,)` or in the shape of the pre-codes.
        bandwidth: Width $\epsilon$ of the kernel, in units of the pre-codes.

    Returns:
        Codes of the same shape, in float32 or float64.

    References:
        Rajamanoharan et al. (2024), arXiv 2407.14435.

    Example:
        >>> import torch
        >>> from sae_lightning.nn.functional import jump
        >>> jump(torch.tensor([0.5, 0.9, 2.0]), torch.tensor([1.0, 0.7, 1.0]), bandwidth=0.1)
        tensor([0.0000, 0.9000, 2.0000])
    """
    return _apply(_Jump, v, threshold, bandwidth)


class _Step(Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
        ctx.save_for_backward(v, threshold)
        ctx.bandwidth = bandwidth
        return _above(v, threshold)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        v, threshold = ctx.saved_tensors
        near = _near(v, threshold, ctx.bandwidth)
        return None, _sum_to(near.mul_(grad), threshold) / -ctx.bandwidth, None


def step(v: Tensor, threshold: Tensor, bandwidth: float) -> Tensor:
    r"""Return 1 where a pre-code exceeds its threshold, $H(v_i - \theta_i)$, with a straight-through gradient.

    Only thresholds receive a gradient: $-1 / \epsilon$ where $|v - \theta| < \epsilon / 2$, zero elsewhere.

    Args:
        v: Pre-codes, `(..., d_sae)` or in any shape.
        threshold: Positive thresholds, `(d_sae,)` or in the shape of the pre-codes.
        bandwidth: Width $\epsilon$ of the kernel, in units of the pre-codes.

    Returns:
        Ones and zeros, in the shape of the pre-codes.

    References:
        Rajamanoharan et al. (2024), arXiv 2407.14435.

    Example:
        >>> import torch
        >>> from sae_lightning.nn.functional import step
        >>> threshold = torch.ones(3, requires_grad=True)
        >>> steps = step(torch.tensor([0.5, 1.2, 3.0]), threshold, bandwidth=0.5)
        >>> steps.sum().backward()
        >>> steps.tolist(), threshold.grad.sum().item()  # only 1.2 lies within 0.25 of its threshold
        ([0.0, 1.0, 1.0], -2.0)
    """
    return _apply(_Step, v, threshold, bandwidth)
