from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist
from torch import Tensor
from torch.autograd import gradcheck

from sae_lightning.nn.functional import (
    affine,
    at_least_float32,
    jump,
    k_sparse,
    negative_squared_distance,
    sparsemax,
    step,
)
from tests.helpers import reference
from tests.helpers.processes import deadline
from tests.helpers.tensors import LEADING_SHAPES, numpy, randn

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
# a code is v - tau with a tau that sums at most a few dozen numbers within [-1, 0]: a few roundings of 6e-8 or 1e-16
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}


def assert_is_sparsemax(v: Tensor) -> None:
    """Compare with the sort in float64 on the same (rounded) pre-codes."""
    with deadline():
        codes = sparsemax(v)
    expected_dtype = torch.float64 if v.dtype == torch.float64 else torch.float32
    assert codes.dtype == expected_dtype
    assert codes.shape == v.shape
    np.testing.assert_allclose(numpy(codes), reference.sparsemax(numpy(v)), rtol=0, atol=TOLERANCE[expected_dtype])
    assert (codes >= 0).all()
    total = codes.sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=v.shape[-1] * TOLERANCE[expected_dtype])


# -- at_least_float32 -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_at_least_float32(dtype: torch.dtype) -> None:
    x = torch.ones(2, dtype=dtype)
    y = at_least_float32(x)
    if dtype in (torch.float32, torch.float64):
        assert y is x
    else:
        assert y.dtype == torch.float32


# -- negative_squared_distance --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.3, 1e-6, 1e6])
@pytest.mark.parametrize("leading", LEADING_SHAPES, ids=str)
def test_negative_squared_distance_is_cdist(
    leading: tuple[int, ...], scale: float, dtype: torch.dtype, tolerance: float
) -> None:
    x, w = randn(*leading, 7, dtype=dtype), randn(11, 7, seed=1, dtype=dtype)
    expected = cdist(numpy(x).reshape(-1, 7), numpy(w), "sqeuclidean").reshape(*leading, 11)
    actual = negative_squared_distance(x, w, torch.tensor(scale, dtype=dtype))
    assert actual.dtype == dtype
    np.testing.assert_allclose(numpy(actual), -scale * expected, rtol=tolerance, atol=20 * scale * tolerance)


def test_negative_squared_distance_gradient() -> None:
    x, w = randn(3, 4).requires_grad_(), randn(5, 4, seed=1).requires_grad_()
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert gradcheck(negative_squared_distance, (x, w, scale))
    offset = randn(5, seed=2).requires_grad_()
    assert gradcheck(negative_squared_distance, (x, w, scale, offset))
    assert torch.allclose(negative_squared_distance(x, w, scale, offset), offset - scale * torch.cdist(x, w).square())


def test_no_latents_at_all_have_gradients_too() -> None:
    """As on a process that holds none of the dead latents."""
    x, centre = randn(3, 4).requires_grad_(), randn(4, seed=1).requires_grad_()
    weight, bias = torch.empty(0, 4, dtype=torch.float64).requires_grad_(), torch.empty(0).requires_grad_()
    pre_codes = affine(x, centre, weight, bias, 1.0)
    assert pre_codes.shape == (3, 0)
    found = torch.autograd.grad(pre_codes.sum(), (x, centre, weight, bias))
    assert [tuple(g.shape) for g in found] == [(3, 4), (4,), (0, 4), (0,)]
    assert not any(bool(g.any()) for g in found)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    offset = bias.double()
    found = torch.autograd.grad(negative_squared_distance(x, weight, scale, offset).sum(), (x, weight, scale, bias))
    assert [tuple(g.shape) for g in found] == [(3, 4), (0, 4), (), (0,)]


def test_squared_distance_to_itself_is_zero_up_to_rounding() -> None:
    x = 100 * randn(50, 16, dtype=torch.float32)
    own = negative_squared_distance(x, x, torch.tensor(1.0)).diagonal()
    assert (own.abs() <= 50 * torch.finfo(torch.float32).eps * x.square().sum(-1)).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_an_offset_that_cancels_the_distance_leaves_small_pre_codes_exact(dtype: torch.dtype) -> None:
    w = (0.5 * randn(10, 32, seed=1, dtype=torch.float32)).to(dtype).float()
    x = (w + 0.5 * randn(10, 32, dtype=torch.float32)).to(dtype).float()
    scale = torch.tensor(0.5)
    offset = 0.5 * (x - w).square().sum(-1) + 1e-3
    with torch.autocast("cpu", dtype=dtype):
        v = negative_squared_distance(x, w, scale, offset)
    assert (v.diagonal() - 1e-3).abs().max() < 1e-4  # rounding the distance, about 4, would be off by 2e-3 or more


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_half_precision_rounds_points_and_distances_once(offset: float, dtype: torch.dtype) -> None:
    # tight clusters far from zero: the norms are up to a thousand times the squared distances within a cluster
    w = 0.5 * randn(10, 32, seed=1, dtype=torch.float32) + offset
    x = w.repeat(2, 1) + 0.1 * randn(20, 32, dtype=torch.float32)
    scale = torch.tensor(0.5)
    with torch.autocast("cpu", dtype=dtype):
        half = negative_squared_distance(x, w, scale)
    assert half.dtype == torch.float32
    exact = -0.5 * cdist(numpy(x.to(dtype)), numpy(w.to(dtype)), "sqeuclidean")
    # the sums within the product are those of float32
    norms = numpy(x.square().sum(-1, keepdim=True) + w.square().sum(-1))
    rounding = torch.finfo(dtype).eps / 2
    assert (np.abs(numpy(half) - exact) <= 1.01 * rounding * np.abs(exact) + 1e-6 * norms).all()
    assert np.abs(numpy(half) - exact).max() > 1e-5  # it did run in half precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_gradients_of_distances_are_those_of_the_rounded_points(dtype: torch.dtype) -> None:
    w = (0.5 * randn(10, 32, seed=1, dtype=torch.float32) + 3.0).requires_grad_()
    x = w.detach().repeat(2, 1) + 0.1 * randn(20, 32, dtype=torch.float32)
    pull = randn(20, 10, seed=2, dtype=torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        v = negative_squared_distance(x, w, torch.tensor(0.5))
    v.backward(pull)
    p, x_, w_ = (numpy(t.detach().to(dtype)) for t in (pull, x, w))
    exact = np.einsum("nl,nld->ld", p, x_[:, None] - w_[None])
    # the product is rounded, the difference is not
    bound = 1.01 * torch.finfo(dtype).eps / 2 * np.abs(p.T @ x_) + 1e-5
    assert (np.abs(numpy(w.grad) - exact) <= bound).all()


def test_squared_distance_of_float64_inputs_to_float32_prototypes() -> None:
    x, w = randn(6, 7), randn(11, 7, seed=1, dtype=torch.float32)
    actual = negative_squared_distance(x, w, torch.tensor(0.3))
    np.testing.assert_allclose(numpy(actual), -0.3 * cdist(numpy(x), numpy(w), "sqeuclidean"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_bias_that_cancels_the_product_leaves_small_pre_codes_exact(dtype: torch.dtype) -> None:
    # a jump's kernel is 1e-3 wide: rounded before the bias is added, they would lie 0.03 or 0.06 apart (bfloat16)
    w = randn(10, 32, seed=1, dtype=torch.float32).to(dtype).float()
    x = (8 * w / w.square().sum(-1, keepdim=True)).to(dtype).float()
    bias = 1e-3 - (x * w).sum(-1)
    with torch.autocast("cpu", dtype=dtype):
        v = affine(x, None, w, bias, 1.0).diagonal()
    torch.testing.assert_close(v, torch.full((10,), 1e-3), rtol=torch.finfo(dtype).eps / 2, atol=4e-6)


# -- sparsemax ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("leading", LEADING_SHAPES[:-1], ids=str)
@pytest.mark.parametrize("d_sae", [1, 2, 5, 64])
def test_sparsemax_dtypes_and_shapes(d_sae: int, leading: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_is_sparsemax(randn(*leading, d_sae, seed=d_sae, dtype=dtype))


def test_sparsemax_of_an_empty_batch() -> None:
    assert sparsemax(torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("scale", [1e-8, 1e-4, 1e-2, 1.0, 1e2, 1e4, 1e8])
@pytest.mark.parametrize("offset", [0.0, -1e6, 1e6])
def test_sparsemax_at_any_scale_and_offset(scale: float, offset: float, dtype: torch.dtype) -> None:
    assert_is_sparsemax((offset + scale * randn(20, 33)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1e-6, 1e-2, 1.0, 1e4])
def test_sparsemax_of_half_precision_at_any_scale(scale: float, dtype: torch.dtype) -> None:
    assert_is_sparsemax((scale * randn(20, 33)).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e8, -1e8, 1e-8])
@pytest.mark.parametrize("d_sae", [1, 2, 3, 7, 100])
def test_sparsemax_of_equal_pre_codes_is_uniform(d_sae: int, value: float, dtype: torch.dtype) -> None:
    codes = sparsemax(torch.full((2, d_sae), value, dtype=dtype))
    torch.testing.assert_close(codes, torch.full_like(codes, 1 / d_sae), rtol=1e-6, atol=0)


@pytest.mark.parametrize("d_sae", [6, 17])
def test_sparsemax_with_every_size_of_support(d_sae: int) -> None:
    for support in range(1, d_sae + 1):
        v = torch.full((d_sae,), -2.0, dtype=torch.float64)
        v[:support] = torch.linspace(0, 0.5 / support, support, dtype=torch.float64)
        v = v[torch.randperm(d_sae, generator=torch.Generator().manual_seed(support))]
        assert_is_sparsemax(v)
        assert_is_sparsemax(v.float())
        assert (sparsemax(v) > 0).sum() == support


@pytest.mark.parametrize(
    "row",
    [
        [1.0, 1.0, 0.0],  # ties at the maximum
        [1.0, 0.0, 0.0, 0.0],  # at the edge: the others are exactly at the threshold
        [0.5, 0.5, 0.0, 0.0],
        [0.3, 0.3, 0.3, -0.7, -0.7],
        [2.0, 1.0, 1.0, 1.0],
        [0.0, -1.0],
        [1e8, 1e8, 0.0],
        [0.0, float("-inf"), -0.5],  # a latent that is ruled out
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sparsemax_with_ties(row: list[float], dtype: torch.dtype) -> None:
    v = torch.tensor(row, dtype=dtype)
    assert_is_sparsemax(v)
    assert_is_sparsemax(torch.stack([v, v.flip(0), torch.randn(len(row), dtype=dtype)]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sparsemax_ends_for_a_pre_code_at_the_threshold(dtype: torch.dtype) -> None:
    # The threshold is (0.1 + 0.5 + 0.7 - 1) / 3 = 0.1, and rounding puts the first code above and below it in turn.
    assert_is_sparsemax(torch.tensor([0.0, 0.1, 0.5, 0.7], dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_sparsemax_ends_for_many_pre_codes_within_rounding_of_the_threshold(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for d_sae in (3, 4, 5, 12, 40):
        v = -torch.rand(64, d_sae, generator=generator, dtype=dtype) / d_sae
        v[:, 0] = 0
        kept = v[:, : d_sae // 2 + 1]
        tau = (kept.sum(-1, keepdim=True) - 1) / kept.shape[-1]
        ulps = torch.randint(-2, 3, v[:, d_sae // 2 + 1 :].shape, generator=generator)
        v[:, d_sae // 2 + 1 :] = tau * (1 + ulps * torch.finfo(dtype).eps)
        assert_is_sparsemax(v)


@pytest.mark.parametrize("d_sae", [33, 512, 16384])
@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e-2])
def test_sparsemax_is_as_exact_as_a_sort_where_codes_are_nearly_uniform(scale: float, d_sae: int) -> None:
    # A sort in float32 errs by about 1e-7 in the sum of the codes and by 1e-6 of the largest code, whatever d_sae is.
    v = scale * randn(8, d_sae, dtype=torch.float32)
    codes = numpy(sparsemax(v))
    expected = reference.sparsemax(numpy(v))
    assert np.abs(codes.sum(-1) - 1).max() < 2e-6
    assert (np.abs(codes - expected).max(-1) < 2e-6 * expected.max(-1)).all()


def test_sparsemax_passes_nan_on() -> None:
    with deadline():
        codes = sparsemax(torch.tensor([[0.0, float("nan"), 1.0], [0.0, 0.25, 1.0]]))
    assert codes[0].isnan().all()
    torch.testing.assert_close(codes[1], torch.tensor([0.0, 0.125, 0.875]))


def test_sparsemax_does_not_change_its_input() -> None:
    v = randn(4, 5)
    before = v.clone()
    sparsemax(v)
    assert torch.equal(v, before)


@pytest.mark.parametrize("shape", [(6,), (1,), (4, 6), (2, 3, 6), (3, 20)], ids=str)
@pytest.mark.parametrize("scale", [0.05, 0.5, 3.0])
def test_sparsemax_gradient(scale: float, shape: tuple[int, ...]) -> None:
    v = scale * randn(*shape, seed=3)
    codes = reference.sparsemax(numpy(v))
    tau = (numpy(v) - codes).max(-1, where=codes > 0, initial=-np.inf, keepdims=True)
    assert np.abs(numpy(v) - tau).min() > 1e-5  # no kink within reach of the finite differences
    assert gradcheck(sparsemax, (v.requires_grad_(),))


def test_sparsemax_gradient_ignores_common_shifts() -> None:
    v = randn(5, 9, dtype=torch.float32).requires_grad_()
    (sparsemax(v) * randn(5, 9, seed=1, dtype=torch.float32)).sum().backward()
    assert v.grad.dtype == torch.float32
    torch.testing.assert_close(v.grad.sum(-1), torch.zeros(5), rtol=0, atol=1e-6)


def test_sparsemax_gradient_returns_to_half_precision() -> None:
    v = randn(3, 5, dtype=torch.bfloat16).requires_grad_()
    sparsemax(v).square().sum().backward()
    assert v.grad.dtype == torch.bfloat16


# -- k_sparse -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", LEADING_SHAPES, ids=str)
@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_k_sparse(k: int, leading: tuple[int, ...]) -> None:
    v = randn(*leading, 6)
    flat = numpy(v).reshape(-1, 6)
    expected = np.maximum(flat * reference.k_largest(flat, k), 0)
    np.testing.assert_array_equal(numpy(k_sparse(v, k)).reshape(-1, 6), expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_k_sparse_dtypes(dtype: torch.dtype) -> None:
    v = randn(4, 6, dtype=dtype)
    codes = k_sparse(v, 2)
    assert codes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert ((codes == 0) | (codes == v)).all()


def test_k_sparse_with_ties_keeps_no_more_than_k() -> None:
    assert (k_sparse(torch.ones(3, 7), 2) > 0).sum(-1).tolist() == [2, 2, 2]


def test_k_sparse_clips_negative_pre_codes() -> None:
    assert k_sparse(torch.tensor([-1.0, -2.0, 0.5, -3.0]), 3).tolist() == [0.0, 0.0, 0.5, 0.0]


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("shape", [(8,), (4, 8), (2, 3, 8)], ids=str)
def test_k_sparse_gradient(shape: tuple[int, ...], k: int) -> None:
    v = randn(*shape)
    assert all(b - a > 1e-4 for row in numpy(v).reshape(-1, 8) for a, b in pairwise(np.sort(row)))
    assert v.abs().min() > 1e-4
    assert gradcheck(lambda v: k_sparse(v, k), (v.requires_grad_(),))


# -- jump and step --------------------------------------------------------------------------------------------------


def by_hand(v: Tensor, threshold: Tensor, bandwidth: float, grad: Tensor) -> tuple[np.ndarray, ...]:
    """Codes, steps and the three gradients, one entry at a time; `grad` is that of the codes."""
    codes, to_v = np.zeros(v.shape), np.zeros(v.shape)
    jump_to_threshold = np.zeros(len(threshold))
    step_to_threshold = np.zeros(len(threshold))
    for at in np.ndindex(*v.shape):
        value, theta = v[at].item(), threshold[at[-1]].item()
        if value > theta:
            codes[at] = value
            to_v[at] = grad[at].item()
        if abs((value - theta) / bandwidth) < 0.5:
            jump_to_threshold[at[-1]] -= grad[at].item() * theta / bandwidth
            step_to_threshold[at[-1]] -= grad[at].item() / bandwidth
    return codes, codes > 0, to_v, jump_to_threshold, step_to_threshold


@pytest.mark.parametrize("leading", LEADING_SHAPES, ids=str)
@pytest.mark.parametrize("bandwidth", [1e-3, 0.4, 2.0])
def test_jump_and_step(bandwidth: float, leading: tuple[int, ...]) -> None:
    v = randn(*leading, 8).requires_grad_()
    threshold = (0.5 + torch.rand(8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).requires_grad_()
    grad = randn(*leading, 8, seed=2)
    codes, steps, to_v, to_threshold, step_to_threshold = by_hand(v, threshold, bandwidth, grad)

    actual = jump(v, threshold, bandwidth)
    np.testing.assert_array_equal(numpy(actual), codes)
    actual.backward(grad)
    np.testing.assert_allclose(numpy(v.grad), to_v, rtol=1e-12)
    np.testing.assert_allclose(numpy(threshold.grad), to_threshold, rtol=1e-12, atol=1e-12)

    v.grad = threshold.grad = None
    actual = step(v, threshold, bandwidth)
    np.testing.assert_array_equal(numpy(actual), steps)
    assert actual.dtype == torch.float64
    actual.backward(grad)
    assert v.grad is None  # the step pulls on thresholds only
    np.testing.assert_allclose(numpy(threshold.grad), step_to_threshold, rtol=1e-12, atol=1e-12)


def test_the_sum_of_steps_weighs_the_gradient_of_each_sample() -> None:
    v = torch.tensor([[1.1, 5.0], [0.9, 1.0]], dtype=torch.float64)
    threshold = torch.ones(2, dtype=torch.float64, requires_grad=True)
    step(v, threshold, 0.5).sum(-1).backward(torch.tensor([3.0, 5.0], dtype=torch.float64))
    assert threshold.grad.tolist() == [-16.0, -10.0]


@pytest.mark.parametrize("bandwidth", [1e-3, 0.4, 2.0])
def test_jump_and_step_with_a_threshold_for_each_pre_code(bandwidth: float) -> None:
    v, threshold = randn(40), randn(40, seed=1).abs()
    latents = torch.arange(40) % 8
    shared = threshold[:8].clone().requires_grad_()
    own = shared.detach()[latents].requires_grad_()
    grad = randn(40, seed=2)
    for function in (jump, step):
        by_row = function(v.view(5, 8), shared, bandwidth)
        by_position = function(v, own, bandwidth)
        assert torch.equal(by_position, by_row.flatten())
        (to_shared,) = torch.autograd.grad(by_row, shared, grad.view(5, 8))
        (to_own,) = torch.autograd.grad(by_position, own, grad)
        torch.testing.assert_close(to_own.view(5, 8).sum(0), to_shared, rtol=1e-12, atol=1e-12)


def test_jump_is_a_shifted_relu_and_a_step() -> None:
    v, theta = randn(200, 1), torch.tensor([0.4], dtype=torch.float64)
    expected = (v - theta).relu() + theta * (v > theta)
    torch.testing.assert_close(jump(v, theta, 0.1), expected, rtol=1e-14, atol=0)


def test_at_the_threshold_nothing_passes() -> None:
    theta = torch.tensor([0.5, 0.5, 0.5])
    v = torch.tensor([0.5, 0.5 + 1e-6, 0.5 - 1e-6])
    assert (jump(v, theta, 0.1) > 0).tolist() == [False, True, False]
    assert step(v, theta, 0.1).tolist() == [0, 1, 0]


@pytest.mark.parametrize("shape", [(8,), (5, 8), (2, 3, 8)], ids=str)
def test_jump_gradient_of_pre_codes_away_from_the_threshold(shape: tuple[int, ...]) -> None:
    v = randn(*shape)
    theta = torch.full((8,), 0.3, dtype=torch.float64)
    assert (v - theta).abs().min() > 1e-4
    assert gradcheck(lambda v: jump(v, theta, 0.5), (v.requires_grad_(),))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_jump_of_half_precision(dtype: torch.dtype) -> None:
    v, theta = randn(5, 8, dtype=dtype), torch.full((8,), 0.3)
    assert jump(v, theta, 0.5).dtype == torch.float32
    assert torch.equal(jump(v, theta, 0.5), jump(v.float(), theta, 0.5))
    assert torch.equal(step(v, theta, 0.5), (v > theta).float())


# -- autocast -------------------------------------------------------------------------------------------------------


def steps(v: Tensor) -> Tensor:
    return step(v, torch.full((9,), 0.3), 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "function",
    [
        sparsemax,
        lambda v: k_sparse(v, 3),
        lambda v: jump(v, torch.full((9,), 0.3), 0.5),
        steps,
    ],
    ids=["sparsemax", "k_sparse", "jump", "step"],
)
def test_autocast_does_not_touch_projections(function, dtype: torch.dtype) -> None:
    v = randn(20, 9, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = function(v)
    outside = function(v)
    assert inside.dtype == outside.dtype == dtype
    assert torch.equal(inside, outside)
    weights = randn(20, 9, seed=1, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (in_autocast,) = torch.autograd.grad((inside * weights).sum(), v, materialize_grads=True)
    (without,) = torch.autograd.grad((outside * weights).sum(), v, materialize_grads=True)
    assert torch.equal(in_autocast, without)
    assert bool((without == 0).all()) == (function is steps)
