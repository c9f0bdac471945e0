"""Sparse codes and their products.

`Pattern` holds the positions of nonzero codes, `SparseCodes` their values. The three products of a training step
(decode, gradient of the codes, gradient of a weight matrix) cost O(nnz * d_in).
"""

import warnings
from functools import cached_property
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812  (the usual name)

# Trigger torch's one-time warning that sparse CSR tensors are in beta: the only operation used here (sampled_addmm) is
# tested against the dense product.
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch.sparse_csr_tensor(torch.tensor([0, 0]), torch.tensor([]).long(), torch.tensor([]), (1, 1))


class ByLatent(NamedTuple):
    """Positions of a pattern, sorted by latent."""

    order: Tensor
    """Index of each position in the pattern, which is sorted by sample, `(nnz,)`."""
    samples: Tensor
    """Sample of each position, `(nnz,)`."""
    offsets: Tensor
    """Start of each latent's positions, followed by the end, `(d_sae + 1,)`."""


class Pattern:
    """Positions at which the codes of a batch may be nonzero, sorted by sample (compressed sparse rows).

    Args:
        positions: `sample * d_sae + latent` of each position, in ascending order, int64 `(nnz,)`.
        n: Number of samples.
        d_sae: Number of latents.

    Example:
        >>> import torch
        >>> from sae_lightning.backends.sparse import Pattern
        >>> pattern = Pattern(torch.tensor([1, 5]), n=2, d_sae=3)
        >>> pattern.samples.tolist(), pattern.latents.tolist()
        ([0, 1], [1, 2])
    """

    def __init__(self, positions: Tensor, n: int, d_sae: int) -> None:
        self.positions = positions
        self.n = n
        self.d_sae = d_sae

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def samples(self) -> Tensor:
        """Sample of each position, `(nnz,)`."""
        return torch.div(self.positions, self.d_sae, rounding_mode="floor")

    @cached_property
    def latents(self) -> Tensor:
        """Latent of each position, `(nnz,)`."""
        return torch.remainder(self.positions, self.d_sae)

    @cached_property
    def offsets(self) -> Tensor:
        """Start of each sample's positions, followed by the end, `(n + 1,)`."""
        starts = torch.arange(self.n + 1, device=self.positions.device) * self.d_sae
        return torch.searchsorted(self.positions, starts)

    @cached_property
    def by_latent(self) -> ByLatent:
        """The same positions, sorted by latent."""
        # narrower integers are sorted faster
        narrow = torch.int16 if self.d_sae < 2**15 else torch.int32
        latents, order = self.latents.to(narrow).sort(stable=True)
        every = torch.arange(self.d_sae + 1, device=latents.device)
        return ByLatent(order, self.samples.index_select(0, order), torch.searchsorted(latents.long(), every))

    def of(self, dense: Tensor) -> Tensor:
        """Return the values of a dense tensor `(n, d_sae)` at these positions, `(nnz,)`."""
        return dense.flatten().index_select(0, self.positions)


class SparseCodes(NamedTuple):
    """Codes of a batch that are zero outside a pattern; gradients flow through the values.

    Example:
        >>> import torch
        >>> from sae_lightning.backends.sparse import Pattern, SparseCodes
        >>> SparseCodes(torch.tensor([7.0, 8.0]), Pattern(torch.tensor([1, 5]), n=2, d_sae=3)).dense()
        tensor([[0., 7., 0.],
                [0., 0., 8.]])
    """

    values: Tensor
    """Value at each position, `(nnz,)`."""
    pattern: Pattern
    """The positions."""

    def dense(self) -> Tensor:
        """Return the codes as a dense tensor, `(n, d_sae)`."""
        n, d_sae = self.pattern.n, self.pattern.d_sae
        return self.values.new_zeros(n * d_sae).index_copy(0, self.pattern.positions, self.values).view(n, d_sae)

    def total(self, values: Tensor | None = None) -> Tensor:
        """Return the sum per sample of the codes, or of other values at the same positions, `(n,)`."""
        values = self.values if values is None else values
        return values.new_zeros(self.pattern.n).index_add(0, self.pattern.samples, values)

    def largest_per_latent(self) -> Tensor:
        """Return the largest magnitude of each latent's codes, 0 if it has none, `(d_sae,)`."""
        zeros = self.values.new_zeros(self.pattern.d_sae)
        return zeros.scatter_reduce(0, self.pattern.latents, self.values.detach().abs(), "amax")


class SparseOutput(NamedTuple):
    """Output of a forward pass with sparse codes."""

    x_hat: Tensor
    """Reconstructions, `(n, d_in)`."""
    codes: SparseCodes
    """Codes at the positions where they may be nonzero."""
    pre_codes: SparseCodes
    """Pre-codes at the same positions."""


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _rows(table: Tensor, indices: Tensor, offsets: Tensor, values: Tensor) -> Tensor:
    """Return weighted sums of table rows, one per range between consecutive offsets, in at least float32."""
    table = _at_least_float32(table)
    return F.embedding_bag(
        indices, table, offsets, mode="sum", per_sample_weights=values.to(table.dtype), include_last_offset=True
    )


def combine(values: Tensor, pattern: Pattern, table: Tensor) -> Tensor:
    r"""Product of sparse codes with a matrix, $Z W$, at O(nnz * d_in).

    Args:
        values: Codes at the positions of the pattern, `(nnz,)`.
        pattern: Positions at which codes may be nonzero.
        table: Matrix with one row per latent, `(d_sae, d_in)`.

    Returns:
        Products, `(n, d_in)`.

    Example:
        >>> import torch
        >>> from sae_lightning.backends.sparse import Pattern
        >>> from sae_lightning.backends.sparse.codes import combine
        >>> pattern = Pattern(torch.tensor([1]), n=1, d_sae=2)
        >>> combine(torch.tensor([2.0]), pattern, torch.tensor([[1.0, 1.0], [3.0, 4.0]]))
        tensor([[6., 8.]])
    """
    return _rows(table, pattern.latents, pattern.offsets, values)


def weight_gradient(values: Tensor, pattern: Pattern, table: Tensor) -> Tensor:
    r"""Transposed product, $Z^T X$, at O(nnz * d_in).

    Args:
        values: Values at the positions of the pattern, `(nnz,)`.
        pattern: Positions at which values may be nonzero.
        table: Matrix with one row per sample, `(n, d_in)`.

    Returns:
        Products, `(d_sae, d_in)`.
    """
    order, samples, offsets = pattern.by_latent
    return _rows(table, samples, offsets, values.index_select(0, order))


def row_products(x: Tensor, rows: Tensor, pattern: Pattern) -> Tensor:
    r"""Entries of $X W^T$ at the positions of a pattern, at O(nnz * d_in).

    Args:
        x: Matrix with one row per sample, `(n, d_in)`.
        rows: Matrix with one row per latent, `(d_sae, d_in)`.
        pattern: Positions of the entries.

    Returns:
        Products, `(nnz,)`.
    """
    # ordered by latent, since the cache holds a batch, but not a dictionary
    order, samples, offsets = pattern.by_latent
    x, rows = _at_least_float32(x), _at_least_float32(rows)
    wanted = torch.sparse_csr_tensor(
        offsets, samples, x.new_zeros(len(samples)), (pattern.d_sae, pattern.n), check_invariants=False
    )
    products = torch.sparse.sampled_addmm(wanted, rows, x.T, beta=0.0).values()
    return torch.empty_like(products).index_copy_(0, order, products)


def sum_by_latent(values: Tensor, pattern: Pattern) -> Tensor:
    """Sum of the values of each latent, `(d_sae,)`."""
    return values.new_zeros(pattern.d_sae).index_add_(0, pattern.latents, values)


class _Decode(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, pattern: Pattern, epsilon: float | None) -> Tensor:
        norms = None if epsilon is None else torch.linalg.vector_norm(_at_least_float32(weight), dim=-1)
        ctx.pattern, ctx.epsilon = pattern, epsilon
        ctx.save_for_backward(values, weight, *(() if norms is None else (norms,)))
        if norms is not None:
            values = values / (norms + epsilon).index_select(0, pattern.latents)
        return combine(values, pattern, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        values, weight, *norms = ctx.saved_tensors
        grad = grad.contiguous()
        products = row_products(grad, weight, ctx.pattern).to(values.dtype)
        if not norms:
            return products, weight_gradient(values, ctx.pattern, grad), None, None
        inverse = 1 / (norms[0] + ctx.epsilon)
        at = inverse.index_select(0, ctx.pattern.latents)
        to_values, scaled = products * at, values * at
        to_weight = None
        if ctx.needs_input_grad[1]:
            # an atom is a row divided by its norm (plus epsilon), so the gradient has a term for the norm
            along = sum_by_latent(scaled * products, ctx.pattern) * inverse / norms[0].clamp_min(1e-30)
            to_weight = weight_gradient(scaled, ctx.pattern, grad)
            to_weight.addcmul_(_at_least_float32(weight), -along[:, None])
        return to_values, to_weight, None, None


def decode_sparse(codes: SparseCodes, weight: Tensor, epsilon: float | None = None) -> Tensor:
    r"""Decode sparse codes, $\hat x = z W$, forward and backward at O(nnz * d_in).

    Args:
        codes: Sparse codes of `n` samples.
        weight: Dictionary, `(d_sae, d_in)`.
        epsilon: If given, divide rows by their norm plus this number.

    Returns:
        Reconstructions, `(n, d_in)`.
    """
    arguments = (codes.values, weight, codes.pattern, epsilon)
    return cast("Tensor", _Decode.apply(*arguments))  # type: ignore[no-untyped-call]


class _AffineAt(Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        center: Tensor | None,
        weight: Tensor,
        bias: Tensor | None,
        scale: float,
        pattern: Pattern,
        values: Tensor,
    ) -> Tensor:
        x = x if center is None else x - center
        ctx.save_for_backward(x.to(torch.promote_types(weight.dtype, torch.float32)), weight)
        ctx.pattern, ctx.scale = pattern, scale
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_center, needs_weight, needs_bias = ctx.needs_input_grad[:4]
        grad = grad if ctx.scale == 1.0 else grad * ctx.scale
        by_latent = sum_by_latent(grad, ctx.pattern) if needs_center or needs_bias else None
        return (
            combine(grad, ctx.pattern, weight) if needs_x else None,
            -(by_latent.to(x.dtype) @ weight.to(x.dtype)) if needs_center and by_latent is not None else None,
            weight_gradient(grad, ctx.pattern, x) if needs_weight else None,
            by_latent if needs_bias else None,
            *(None, None, None),
        )


def affine_at(
    x: Tensor,
    center: Tensor | None,
    weight: Tensor,
    bias: Tensor | None,
    scale: float,
    pattern: Pattern,
    values: Tensor,
) -> Tensor:
    r"""Attach the gradient of $v = s (W (x - c) + b)$ to affine pre-codes known at some positions, at O(nnz * d_in).

    Args:
        x: Inputs, `(n, d_in)`.
        center: Vector $c$ subtracted from each input, `(d_in,)`, or None.
        weight: Encoder rows, `(d_sae, d_in)`.
        bias: Bias $b$, `(d_sae,)`, or None.
        scale: The factor $s$.
        pattern: The positions.
        values: Pre-codes at these positions, `(nnz,)`.

    Returns:
        The same values with gradients, `(nnz,)`.
    """
    arguments = (x, center, weight, bias, scale, pattern, values)
    return cast("Tensor", _AffineAt.apply(*arguments))  # type: ignore[no-untyped-call]


class _DistanceAt(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None, pattern: Pattern, values: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x.to(torch.promote_types(weight.dtype, torch.float32)), weight, scale, offset, values)
        ctx.pattern = pattern
        return values.view_as(values)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, scale, offset, values = ctx.saved_tensors
        pattern = ctx.pattern
        needs_x, needs_weight, needs_scale, needs_offset = ctx.needs_input_grad[:4]
        to_x = to_weight = to_scale = None
        pull = grad * (2 * scale)  # d/dw of -scale * |x - w|^2 is 2 * scale * (x - w)
        if needs_weight:
            to_weight = weight_gradient(pull, pattern, x)
            to_weight.addcmul_(_at_least_float32(weight), -sum_by_latent(pull, pattern)[:, None])
        if needs_x:
            to_x = combine(pull, pattern, weight)
            to_x.addcmul_(x, -pull.new_zeros(pattern.n).index_add_(0, pattern.samples, pull)[:, None])
        by_latent = None if offset is None else sum_by_latent(grad, pattern)
        if needs_scale:
            along = torch.dot(grad, values)
            if by_latent is not None:  # the scale multiplies the values without their offsets
                along = along - torch.dot(by_latent, offset)
            to_scale = along / scale.clamp_min(torch.finfo(scale.dtype).tiny)
        return to_x, to_weight, to_scale, by_latent if needs_offset else None, None, None


def distance_at(
    x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None, pattern: Pattern, values: Tensor
) -> Tensor:
    r"""Attach the gradient of $v = b - \lambda \|x - w\|^2$ to pre-codes known at some positions, at O(nnz * d_in).

    Args:
        x: Inputs, `(n, d_in)`.
        weight: Prototypes, `(d_sae, d_in)`.
        scale: The scalar $\lambda$.
        offset: The offsets $b$, `(d_sae,)`, or None.
        pattern: The positions.
        values: Pre-codes at these positions, `(nnz,)`.

    Returns:
        The same values with gradients, `(nnz,)`.
    """
    arguments = (x, weight, scale, offset, pattern, values)
    return cast("Tensor", _DistanceAt.apply(*arguments))  # type: ignore[no-untyped-call]


class _SparsemaxOn(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, pattern: Pattern) -> Tensor:
        ctx.pattern = pattern
        ctx.counts = pattern.offsets.diff().to(values.dtype)
        # shift by the maximum, since sums of large pre-codes would round small codes away
        top = values.new_full((pattern.n,), -torch.inf).scatter_reduce_(0, pattern.samples, values, "amax")
        shifted = values - top.index_select(0, pattern.samples)
        tau = (_total(shifted, pattern) - 1) / ctx.counts
        return shifted.sub_(tau.index_select(0, pattern.samples)).clamp_min_(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        mean = _total(grad, ctx.pattern) / ctx.counts
        return grad - mean.index_select(0, ctx.pattern.samples), None


def _total(values: Tensor, pattern: Pattern) -> Tensor:
    return values.new_zeros(pattern.n).index_add_(0, pattern.samples, values)


def sparsemax_on(v: SparseCodes) -> Tensor:
    r"""Sparsemax for a known support $S$: $z_i = v_i - (\sum_{j \in S} v_j - 1) / |S|$.

    Args:
        v: Pre-codes at the positions of the support.

    Returns:
        Codes at these positions, `(nnz,)`.
    """
    return cast("Tensor", _SparsemaxOn.apply(*v))  # type: ignore[no-untyped-call]
