from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sae_lightning.backends.sparse import Pattern, SparseCodes, support
from sae_lightning.backends.sparse.codes import sparsemax_on
from sae_lightning.backends.sparse.support import above, largest, simplex_support
from sae_lightning.nn import search as searching
from sae_lightning.nn.functional import k_sparse, sparsemax
from sae_lightning.nn.search import group_maxima, kth_largest, simplex_threshold
from tests.helpers.backends import Elsewhere
from tests.helpers.processes import deadline
from tests.helpers.tensors import numpy, randn

# a code is v - tau with a tau that sums numbers within [-1, 0]: a few roundings of 6e-8 or 1e-16
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14}
SIZES = [1, 2, 5, 31, 255, 256, 259, 1000, 2999]  # 256: the least whose groups' maxima are asked about the simplex


@pytest.fixture(params=["cpu", "elsewhere"])
def on(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Call a search as on the CPU (numpy), or as on another device (no numpy within reach)."""
    if request.param == "cpu":
        return lambda search, *args: search(*args)

    def call(search: Callable[..., Any], *args: Any) -> Any:
        with monkeypatch.context() as patched, Elsewhere():
            patched.setattr(support, "np", None)
            patched.setattr(searching, "np", None)
            return search(*args)

    return call


def sorted_sparsemax(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Codes and thresholds of rows by sorting in float64 (Martins and Astudillo 2016, algorithm 1)."""
    v = v - v.max(1, keepdims=True)
    descending = -np.sort(-v, axis=1)
    counts = np.arange(1, v.shape[1] + 1)
    with np.errstate(invalid="ignore"):
        size = (1 + counts * descending > descending.cumsum(1)).sum(1, keepdims=True)
    tau = (np.take_along_axis(descending.cumsum(1), size - 1, 1) - 1) / size
    return np.maximum(v - tau, 0.0), tau


def pre_codes(kind: str, n: int, d_sae: int) -> Tensor:  # noqa: PLR0911
    """Pre-codes that projections may find hard."""
    v = randn(n, d_sae, seed=d_sae)
    if kind == "ties":
        return (v * 2).round() / 4
    if kind == "equal":
        return torch.full_like(v, -3.7)
    if kind == "huge":
        return 1e30 * v
    if kind == "tiny":
        return 1e-30 * v
    if kind == "offset":
        return v + 1e6 * torch.tensor([-1.0, 1.0]).repeat(n)[:n, None]
    if kind == "uniform":
        return v / (3 * d_sae)
    if kind == "distances":
        return -20 * (randn(n, 3)[:, None] - randn(d_sae, 3, seed=1)).square().sum(-1)
    if kind == "excluded":
        return v.masked_fill((v < -0.5) & (torch.arange(d_sae) > 0), -torch.inf)
    return v


KINDS = ["normal", "ties", "equal", "huge", "tiny", "offset", "uniform", "distances", "excluded"]


def positions_are_sound(pattern: Pattern, v: Tensor) -> None:
    assert (pattern.n, pattern.d_sae) == v.shape
    assert pattern.positions.dtype == torch.int64
    assert (pattern.positions.diff() > 0).all()
    assert len(pattern) == 0 or 0 <= pattern.positions[0] <= pattern.positions[-1] < v.numel()


# -- the simplex ----------------------------------------------------------------------------------------------------


def sparse_sparsemax(v: Tensor, pattern: Pattern) -> Tensor:
    return SparseCodes(sparsemax_on(SparseCodes(pattern.of(v), pattern)), pattern).dense()


def check_simplex(v: Tensor, on: Callable[..., Any]) -> None:
    """Dense and sparse sparsemax, forward and backward, against the sort in float64."""
    single = v.dtype == torch.float32
    tolerance = TOLERANCE[v.dtype]
    codes, tau = sorted_sparsemax(numpy(v))
    with deadline():
        dense = sparsemax(v)
        pattern = on(simplex_support, v)
    positions_are_sound(pattern, v)
    assert (pattern.offsets.diff() > 0).all()
    for found in (numpy(dense), numpy(sparse_sparsemax(v, pattern))):
        np.testing.assert_allclose(found, codes, rtol=0, atol=tolerance)
        np.testing.assert_allclose(found.sum(1), 1.0, rtol=0, atol=max(5e-6 if single else 0, tolerance * len(v[0])))

    # the gradient g - mean(g) on the support: where a code is within rounding of 0, either side is right
    away = (np.abs(numpy(v) - numpy(v).max(1, keepdims=True) - tau) > 4 * tolerance).all(1)
    grad = randn(*v.shape, seed=7)
    mask = codes > 0
    mean = (numpy(grad) * mask).sum(1, keepdims=True) / mask.sum(1, keepdims=True)
    expected = (numpy(grad) - mean) * mask
    for function in (sparsemax, lambda u: sparse_sparsemax(u, pattern)):
        u = v.clone().requires_grad_()
        function(u).backward(grad.to(v.dtype))
        largest_gradient = max(1.0, np.abs(expected).max())
        np.testing.assert_allclose(
            numpy(u.grad)[away], expected[away], rtol=0, atol=(2e-6 if single else 1e-14) * largest_gradient
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d_sae", SIZES)
def test_sparsemax_is_the_sort(d_sae: int, kind: str, dtype: torch.dtype, on: Callable[..., Any]) -> None:
    check_simplex(pre_codes(kind, 6, d_sae).to(dtype), on)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("d_sae", [1, 7, 300])
def test_sparsemax_of_rounded_pre_codes(d_sae: int, dtype: torch.dtype, on: Callable[..., Any]) -> None:
    v = randn(6, d_sae).to(dtype)
    check_simplex(v.float(), on)
    assert torch.equal(sparsemax(v), sparsemax(v.float()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("d_sae", [5, 256, 300])
def test_sparsemax_with_every_size_of_support(d_sae: int, dtype: torch.dtype, on: Callable[..., Any]) -> None:
    sizes = torch.arange(1, d_sae + 1)
    ranks = torch.arange(d_sae)[None]
    v = torch.where(ranks < sizes[:, None], 0.5 * ranks / sizes[:, None] ** 2, -2.0)
    v = v[:, torch.randperm(d_sae, generator=torch.Generator().manual_seed(0))].to(dtype)
    assert on(simplex_support, v).offsets.diff().tolist() == sizes.tolist()
    check_simplex(v, on)


@pytest.mark.parametrize("shape", [(0, 5), (0, 300), (1, 1), (1, 300), (300, 1)], ids=str)
def test_simplex_support_of_few_rows(shape: tuple[int, int], on: Callable[..., Any]) -> None:
    pattern = on(simplex_support, randn(*shape))
    positions_are_sound(pattern, randn(*shape))
    assert (len(pattern) == 0) == (shape[0] == 0)


@pytest.mark.parametrize("kind", ["normal", "distances"])
@pytest.mark.parametrize("d_sae", [9, 300])
def test_strides_and_leading_shapes_change_nothing(d_sae: int, kind: str, on: Callable[..., Any]) -> None:
    v = pre_codes(kind, 6, d_sae)
    strided = v.T.contiguous().T
    sliced = torch.cat([v, v], 1)[:, :d_sae]
    for search in (simplex_support, lambda u: largest(u, 3), lambda u: above(u, -0.1)):
        for other in (strided, sliced):
            assert not other.is_contiguous()
            assert torch.equal(on(search, other).positions, on(search, v).positions)
    for function in (sparsemax, lambda u: k_sparse(u, 3)):
        for other in (strided, sliced, v.view(2, 3, d_sae), strided.reshape(3, 2, d_sae)):
            torch.testing.assert_close(function(other).reshape(6, d_sae), function(v), rtol=0, atol=1e-15)


@pytest.mark.parametrize("d_sae", [3, 300])
def test_simplex_support_keeps_nan(d_sae: int, on: Callable[..., Any]) -> None:
    v = randn(3, d_sae)
    alone = on(simplex_support, v[2:])
    v[0, 1] = torch.nan
    with deadline():
        pattern = on(simplex_support, v)
    codes = sparse_sparsemax(v, pattern)
    assert codes[0].isnan().any()
    assert codes[1:].isfinite().all()
    assert torch.equal(pattern.latents[pattern.samples == 2], alone.latents)


@pytest.mark.parametrize("row", [0, 1, 2])
@pytest.mark.parametrize("value", [torch.inf, -torch.inf])
@pytest.mark.parametrize("d_sae", [3, 300])
def test_a_row_that_overflowed_is_nan_and_leaves_others_alone(
    d_sae: int, value: float, row: int, on: Callable[..., Any]
) -> None:
    v = randn(3, d_sae)
    expected = sparsemax(v)
    v[row] = value
    with deadline():
        pattern = on(simplex_support, v)
    codes = sparse_sparsemax(v, pattern)
    assert codes[row].isnan().any()
    others = [i for i in range(3) if i != row]
    torch.testing.assert_close(codes[others], expected[others], rtol=0, atol=1e-14)


@pytest.mark.parametrize("d_sae", [2, 300, 3000])
def test_simplex_threshold(d_sae: int) -> None:
    v = pre_codes("normal", 5, d_sae)
    v = v - v.amax(-1, keepdim=True)
    threshold = simplex_threshold(v)
    assert threshold.shape == (5, 1)
    assert ((threshold >= -1) & (threshold <= 0)).all()
    np.testing.assert_allclose(numpy(threshold), sorted_sparsemax(numpy(v))[1], rtol=0, atol=1e-14)


# -- the k largest --------------------------------------------------------------------------------------------------


def check_largest(v: Tensor, k: int, on: Callable[..., Any]) -> None:
    pattern = on(largest, v, k)
    positions_are_sound(pattern, v)
    for row, wanted in enumerate(v.topk(k, dim=-1).values):
        found = v[row, pattern.latents[pattern.samples == row]]
        expected = wanted[~(wanted <= 0)]
        assert len(found) == len(expected) <= k
        np.testing.assert_array_equal(np.sort(numpy(found)), np.sort(numpy(expected)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("d_sae", SIZES)
def test_largest_is_topk(d_sae: int, kind: str, dtype: torch.dtype, on: Callable[..., Any]) -> None:
    v = pre_codes(kind, 6, d_sae).to(dtype)
    for k in {1, 2, 3, 16, 17, d_sae // 8, d_sae // 2, d_sae - 1, d_sae}:
        if 1 <= k <= d_sae:
            check_largest(v, k, on)
            check_largest(v.abs(), k, on)


@pytest.mark.parametrize("d_sae", [7, 40])
def test_largest_for_every_k(d_sae: int, on: Callable[..., Any]) -> None:
    v = torch.cat([pre_codes(kind, 4, d_sae) for kind in ("normal", "ties", "equal", "excluded")])
    for k in range(1, d_sae + 1):
        check_largest(v, k, on)
        check_largest(v.abs().masked_fill(v.isinf(), 0.0), k, on)


@pytest.mark.parametrize("d_sae", [9, 300, 2000])
def test_largest_takes_no_more_than_k_among_equals(d_sae: int, on: Callable[..., Any]) -> None:
    v = torch.ones(4, d_sae)
    v[1, ::2] = 2.0
    v[2] = 0.0
    v[3] = randn(d_sae).abs().float() + 0.1
    assert on(largest, v, 4).offsets.diff().tolist() == [4, 4, 0, 4]
    check_largest(v, 4, on)


@pytest.mark.parametrize("broken", [1, 3, 5, 9])
@pytest.mark.parametrize("d_sae", [9, 300, 2000])
def test_largest_keeps_nan(d_sae: int, broken: int, on: Callable[..., Any]) -> None:
    v = randn(4, d_sae)
    v[1, :broken] = torch.nan
    v[2, :broken] = -torch.inf
    v[3, :broken] = torch.inf
    check_largest(v, 3, on)
    codes = k_sparse(v, 3)
    assert codes[1].isnan().sum() == min(broken, 3)
    assert not codes[[0, 2, 3]].isnan().any()


@pytest.mark.parametrize("d_sae", [9, 2000])
def test_k_sparse_of_excluded_pre_codes(d_sae: int) -> None:
    v = pre_codes("excluded", 6, d_sae)
    codes = k_sparse(v, 3)
    for row, wanted in enumerate(v.topk(3, dim=-1).values.clamp_min(0)):
        np.testing.assert_array_equal(np.sort(numpy(codes[row]))[-3:], np.sort(numpy(wanted)))
    assert (codes > 0).sum(-1).max() <= 3


def test_largest_of_no_rows(on: Callable[..., Any]) -> None:
    for d_sae in (3, 300):
        assert len(on(largest, torch.zeros(0, d_sae), 2)) == 0


@pytest.mark.parametrize("d_sae", [1, 6, 300])
def test_kth_largest(d_sae: int) -> None:
    v = pre_codes("ties", 5, d_sae)
    for k in {1, d_sae // 3 + 1, d_sae}:
        expected = v.sort(dim=1, descending=True).values[:, k - 1 : k]
        assert torch.equal(kth_largest(v, k), expected)
        assert torch.equal(kth_largest(v.T.contiguous().T, k), expected)


# -- above and groups -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (6, 5), (4, 300)], ids=str)
def test_above(shape: tuple[int, int], on: Callable[..., Any]) -> None:
    v = (2 * randn(*shape)).round() / 2
    if v.numel() > 1:
        v[-1, -1], v[0, 0] = torch.nan, -torch.inf
    thresholds: list[Any] = [0.0, 0.5, torch.inf, randn(shape[1], seed=1).round(), randn(shape[0], 1, seed=2).round()]
    for threshold in thresholds:
        pattern = on(above, v, threshold)
        positions_are_sound(pattern, v)
        expected = (v > threshold) | v.isnan()
        assert torch.equal(pattern.positions, expected.flatten().nonzero().squeeze(-1))
        assert torch.equal(on(above, v.T.contiguous().T, threshold).positions, pattern.positions)


def test_above_a_threshold_with_a_gradient(on: Callable[..., Any]) -> None:
    v, threshold = randn(4, 6).requires_grad_(), randn(6, seed=1).requires_grad_()
    assert torch.equal(on(above, v, threshold).positions, (v > threshold).flatten().nonzero().squeeze(-1))


@pytest.mark.parametrize("d_sae", SIZES)
def test_group_maxima(d_sae: int) -> None:
    v = pre_codes("normal", 5, d_sae)
    for least in (1, 2, 16, 64, 65, 500):
        maxima = group_maxima(v, least)
        if d_sae // 4 < least:
            assert maxima is None
            continue
        assert maxima is not None
        assert maxima.shape[1] >= least
        for row in range(5):
            members = set(v[row].tolist())
            found = maxima[row].tolist()
            assert set(found) <= members
            assert len(set(found)) == len(found)  # one group each: as many pre-codes reach a bound as maxima do
        covered = maxima.shape[1] * next(size for size in (32, 16, 8, 4) if d_sae // size == maxima.shape[1])
        assert torch.equal(maxima.amax(1), v[:, :covered].amax(1))


def test_group_maxima_keep_nan() -> None:
    v = randn(2, 300)
    v[0, 17] = torch.nan
    assert group_maxima(v, 64)[0].isnan().sum() == 1
    assert group_maxima(v, 64)[1].isfinite().all()
