from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from sae_lightning.backends.sparse.codes import (
    Pattern,
    SparseCodes,
    affine_at,
    combine,
    decode_sparse,
    distance_at,
    row_products,
    sparsemax_on,
    sum_by_latent,
    weight_gradient,
)
from tests.helpers.tensors import randn

# (samples, latents, d_in, share of positions); int16 holds latents up to 2^15
SHAPES = [
    (6, 9, 5, 0.3),
    (1, 9, 5, 0.5),
    (6, 1, 5, 0.5),
    (6, 9, 1, 0.5),
    (6, 9, 5, 0.0),
    (6, 9, 5, 1.0),
    (0, 9, 5, 0.5),
    (3, 2**15 - 1, 2, 0.01),
    (3, 2**15, 2, 0.01),
    (3, 40_000, 2, 0.01),
]
EVERY_SHAPE = pytest.mark.parametrize(("n", "d_sae", "d_in", "share"), SHAPES)


def some_pattern(n: int, d_sae: int, share: float, seed: int = 3) -> Pattern:
    """Positions at random, none in the first sample and the last latent (unless all are wanted)."""
    mask = torch.rand(n, d_sae, generator=torch.Generator().manual_seed(seed)) < share
    if share < 1:
        mask[:1, :] = False
        mask[:, -1] = False
    return Pattern(mask.flatten().nonzero().squeeze(-1), n, d_sae)


def dense(values: Tensor, pattern: Pattern) -> Tensor:
    out = torch.zeros(pattern.n, pattern.d_sae, dtype=values.dtype)
    for value, sample, latent in zip(values, pattern.samples, pattern.latents, strict=True):
        out[sample, latent] = value
    return out


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


# -- patterns and codes ---------------------------------------------------------------------------------------------


@EVERY_SHAPE
def test_pattern(n: int, d_sae: int, d_in: int, share: float) -> None:
    pattern = some_pattern(n, d_sae, share)
    values = randn(len(pattern), seed=1)
    table = dense(values, pattern)
    where = torch.zeros(n, d_sae, dtype=torch.bool)
    where[pattern.samples, pattern.latents] = True
    assert torch.equal(where.flatten().nonzero().squeeze(-1), pattern.positions)
    assert pattern.offsets.tolist() == [0, *where.sum(1).cumsum(0).tolist()]
    assert torch.equal(pattern.of(table), values)
    order, samples, offsets = pattern.by_latent
    columns = where.T.nonzero()
    assert torch.equal(pattern.latents[order], columns[:, 0])
    assert torch.equal(samples, columns[:, 1])
    assert torch.equal(pattern.samples[order], samples)
    assert offsets.tolist() == [0, *where.sum(0).cumsum(0).tolist()]


@EVERY_SHAPE
def test_codes(n: int, d_sae: int, d_in: int, share: float) -> None:
    pattern = some_pattern(n, d_sae, share)
    codes = SparseCodes(randn(len(pattern), seed=1).requires_grad_(), pattern)
    table = dense(codes.values.detach(), pattern)
    assert torch.equal(codes.dense(), table)
    close(codes.total(), table.sum(1))
    close(codes.total(codes.values.square()), table.square().sum(1))
    close(sum_by_latent(codes.values, pattern), table.sum(0))
    largest = table.abs().amax(0) if n else torch.zeros(d_sae, dtype=torch.float64)
    assert torch.equal(codes.largest_per_latent(), largest)
    assert not codes.largest_per_latent().requires_grad


def test_gradients_of_dense_and_total() -> None:
    pattern = some_pattern(6, 9, 0.3)
    values = randn(len(pattern)).requires_grad_()
    assert gradcheck(lambda v: SparseCodes(v, pattern).dense(), (values,))
    assert gradcheck(lambda v: SparseCodes(v, pattern).total(), (values,))


# -- products -------------------------------------------------------------------------------------------------------


def as_columns(table: Tensor) -> Tensor:
    """The same values in the other memory order."""
    return table.T.contiguous().T


def as_rows(table: Tensor) -> Tensor:
    return table


def expanded(table: Tensor) -> Tensor:
    """A table whose columns share their memory, as the gradient of a sum has it."""
    return table[:, :1].expand_as(table)


@pytest.mark.parametrize("layout", [as_rows, as_columns, expanded])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
@EVERY_SHAPE
def test_products_are_those_of_dense_matrices(
    n: int,
    d_sae: int,
    d_in: int,
    share: float,
    dtype: torch.dtype,
    tolerance: float,
    layout: Callable[[Tensor], Tensor],
) -> None:
    pattern = some_pattern(n, d_sae, share)
    values = randn(len(pattern), seed=1, dtype=dtype)
    codes = SparseCodes(values, pattern).dense()
    x, rows = layout(randn(n, d_in, seed=2, dtype=dtype)), layout(randn(d_sae, d_in, seed=3, dtype=dtype))
    close(combine(values, pattern, rows), codes @ rows, tolerance)
    close(weight_gradient(values, pattern, x), codes.T @ x, tolerance)
    close(row_products(x, rows, pattern), pattern.of(x @ rows.T), tolerance)
    for product in (combine(values, pattern, rows), weight_gradient(values, pattern, x)):
        assert product.dtype == dtype


def test_products_of_half_precision() -> None:
    pattern = some_pattern(6, 9, 0.4)
    values = randn(len(pattern), dtype=torch.float32)
    x, rows = randn(6, 32).bfloat16(), randn(9, 32, seed=1).bfloat16()
    codes = SparseCodes(values.bfloat16(), pattern).dense().double()
    exact = codes @ rows.double()
    close(combine(values, pattern, rows).double(), exact, 2.0**-7 * exact.abs().max().item())
    close(row_products(x, rows, pattern).double(), pattern.of(x.double() @ rows.double().T), 1e-4)


# -- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("epsilon", [None, 1e-6, 0.3])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gradient_of_decode_sparse(share: float, epsilon: float | None) -> None:
    pattern = some_pattern(4, 6, share)
    values, weight = randn(len(pattern)).requires_grad_(), randn(6, 3, seed=1).requires_grad_()
    assert gradcheck(lambda v, w: decode_sparse(SparseCodes(v, pattern), w, epsilon), (values, weight))
    atoms = weight if epsilon is None else weight / (weight.norm(dim=1, keepdim=True) + epsilon)
    close(decode_sparse(SparseCodes(values, pattern), weight, epsilon), SparseCodes(values, pattern).dense() @ atoms)


def test_a_vanishing_atom_stays_finite() -> None:
    pattern = some_pattern(4, 6, 0.5)
    values, weight = randn(len(pattern)).requires_grad_(), torch.zeros(6, 3, dtype=torch.float64, requires_grad=True)
    decode_sparse(SparseCodes(values, pattern), weight, 1e-6).sum().backward()
    by_sparse = weight.grad
    weight.grad = None
    atoms = weight / (weight.norm(dim=1, keepdim=True) + 1e-6)
    (SparseCodes(values, pattern).dense() @ atoms).sum().backward()
    close(by_sparse, weight.grad)


def affine_pre_codes(
    x: Tensor, centre: Tensor | None, weight: Tensor, bias: Tensor | None, scale: float, pattern: Pattern
) -> Tensor:
    seen = x if centre is None else x - centre
    return scale * pattern.of(seen @ weight.T + (0.0 if bias is None else bias))


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gradient_of_affine_at(share: float, centre: bool, bias: bool, scale: float) -> None:
    pattern = some_pattern(4, 6, share)
    arguments = [
        randn(4, 3).requires_grad_(),
        randn(3, seed=1).requires_grad_() if centre else None,
        randn(6, 3, seed=2).requires_grad_(),
        randn(6, seed=3).requires_grad_() if bias else None,
    ]
    expected = affine_pre_codes(*arguments, scale, pattern)
    actual = affine_at(*arguments, scale, pattern, expected.detach())
    assert torch.equal(actual, expected)
    same_gradients(actual, expected, arguments)
    # its values are given, so that finite differences see them through a function that computes them
    assert gradcheck(lambda *a: affine_at(*a, scale, pattern, affine_pre_codes(*a, scale, pattern).detach()), arguments)


def distance_pre_codes(x: Tensor, weight: Tensor, scale: Tensor, offset: Tensor | None, pattern: Pattern) -> Tensor:
    return pattern.of((0.0 if offset is None else offset) - scale * (x[:, None] - weight).square().sum(-1))


@pytest.mark.parametrize("offset", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gradient_of_distance_at(share: float, offset: bool) -> None:
    pattern = some_pattern(4, 6, share)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    offsets = randn(6, seed=2).requires_grad_() if offset else None
    arguments = [randn(4, 3).requires_grad_(), randn(6, 3, seed=1).requires_grad_(), scale, offsets]
    expected = distance_pre_codes(*arguments, pattern)
    actual = distance_at(*arguments, pattern, expected.detach())
    assert torch.equal(actual, expected)
    same_gradients(actual, expected, arguments)
    assert gradcheck(lambda *a: distance_at(*a, pattern, distance_pre_codes(*a, pattern).detach()), arguments)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_gradient_of_sparsemax_on(share: float) -> None:
    pattern = some_pattern(5, 8, share)
    values = (0.01 * randn(len(pattern))).requires_grad_()  # so close that all of them are in the support
    assert gradcheck(lambda v: sparsemax_on(SparseCodes(v, pattern)), (values,))
    codes = SparseCodes(sparsemax_on(SparseCodes(values, pattern)), pattern)
    assert (codes.values > 0).all()
    close(codes.total(), (pattern.offsets.diff() > 0).double())


def same_gradients(actual: Tensor, expected: Tensor, arguments: list[Any]) -> None:
    leaves = [a for a in arguments if a is not None]
    grad = randn(*actual.shape, seed=9)
    for mine, wanted in zip(
        torch.autograd.grad(actual, leaves, grad), torch.autograd.grad(expected, leaves, grad), strict=True
    ):
        close(mine, wanted)


@pytest.mark.parametrize("frozen", range(4))
def test_what_needs_no_gradient_gets_none(frozen: int) -> None:
    pattern = some_pattern(4, 6, 0.4)
    arguments = [randn(4, 3), randn(3, seed=1), randn(6, 3, seed=2), randn(6, seed=3)]
    for i, argument in enumerate(arguments):
        argument.requires_grad_(i != frozen)
    values = affine_pre_codes(*arguments, 0.5, pattern)
    affine_at(*arguments, 0.5, pattern, values.detach()).sum().backward()
    assert [argument.grad is None for argument in arguments] == [i == frozen for i in range(4)]


def test_a_graph_may_be_walked_twice() -> None:
    pattern = some_pattern(4, 6, 0.4)
    values, weight = randn(len(pattern)).requires_grad_(), randn(6, 3, seed=1).requires_grad_()
    loss = decode_sparse(SparseCodes(sparsemax_on(SparseCodes(values, pattern)), pattern), weight, 1e-6).square().sum()
    loss.backward(retain_graph=True)
    first = [values.grad.clone(), weight.grad.clone()]
    loss.backward()
    for leaf, once in zip((values, weight), first, strict=True):
        close(leaf.grad, 2 * once)


def test_second_derivatives_are_refused() -> None:
    pattern = some_pattern(4, 6, 0.4)
    values, weight = randn(len(pattern)).requires_grad_(), randn(6, 3, seed=1).requires_grad_()
    loss = decode_sparse(SparseCodes(values, pattern), weight).square().sum()
    (gradient,) = torch.autograd.grad(loss, values, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
