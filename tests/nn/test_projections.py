from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.optimize import minimize, nnls

from sae_lightning.nn import Jump, KSparse, Orthant, Simplex
from tests.helpers import reference
from tests.helpers.tensors import LEADING_SHAPES, numpy, randn


@pytest.mark.parametrize("seed", range(5))
def test_orthant_solves_its_minimisation(seed: int) -> None:
    v = randn(7, seed=seed)
    solution, _ = nnls(np.eye(7), numpy(v))
    np.testing.assert_allclose(numpy(Orthant(7)(v)), solution, atol=1e-12)


@pytest.mark.parametrize("scale", [0.1, 0.6, 3.0])
@pytest.mark.parametrize("seed", range(4))
def test_simplex_solves_its_minimisation(seed: int, scale: float) -> None:
    v = scale * randn(6, seed=seed)
    target = numpy(v)
    solved = minimize(
        lambda z: ((z - target) ** 2).sum(),
        np.full(6, 1 / 6),
        jac=lambda z: 2 * (z - target),
        method="SLSQP",
        bounds=[(0, None)] * 6,
        constraints={"type": "eq", "fun": lambda z: z.sum() - 1, "jac": lambda z: np.ones(6)},
        options={"ftol": 1e-13, "maxiter": 200},
    )
    assert solved.status in (0, 8)  # converged, or no step improves any more
    codes = numpy(Simplex(6)(v))
    np.testing.assert_allclose(codes, solved.x, atol=1e-6)
    np.testing.assert_allclose(codes, reference.sparsemax_row(target), atol=1e-14)


@pytest.mark.parametrize("d_sae", [8, 300])
def test_simplex_meets_the_conditions_of_the_minimum(d_sae: int) -> None:
    v = randn(50, d_sae)
    codes = Simplex(d_sae)(v)
    multiplier = v - codes  # tau on the support, at most tau elsewhere
    on_support = codes > 0
    tau = multiplier.masked_fill(~on_support, -torch.inf).amax(-1, keepdim=True)
    torch.testing.assert_close(multiplier[on_support], tau.expand_as(v)[on_support], rtol=0, atol=1e-13)
    assert (v <= tau + 1e-13)[~on_support].all()
    torch.testing.assert_close(codes.sum(-1), torch.ones(50, dtype=torch.float64), rtol=0, atol=1e-13)


@pytest.mark.parametrize("d_sae", [1, 4, 6])
@pytest.mark.parametrize("seed", range(3))
def test_k_sparse_solves_its_minimisation(seed: int, d_sae: int) -> None:
    v = randn(d_sae, seed=seed)
    target = numpy(v)
    for k in range(1, d_sae + 1):
        candidates = []
        for support in combinations(range(d_sae), k):
            z = np.zeros(d_sae)
            z[list(support)], _ = nnls(np.eye(k), target[list(support)])
            candidates.append(z)
        best = min(candidates, key=lambda z: ((z - target) ** 2).sum())
        np.testing.assert_allclose(numpy(KSparse(d_sae, k)(v)), best, atol=1e-12)


def test_jump_is_its_definition() -> None:
    projection = Jump(5, threshold_init=0.3).double()
    with torch.no_grad():
        projection.log_threshold.copy_(torch.tensor([0.1, 0.2, 0.5, 1.0, 2.0]).log())
    v = randn(40, 5)
    codes = projection(v)
    for row in range(40):
        for i, theta in enumerate([0.1, 0.2, 0.5, 1.0, 2.0]):
            value = v[row, i].item()
            assert codes[row, i].item() == (value if value > theta + 1e-6 else 0.0)


@pytest.mark.parametrize("leading", LEADING_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("projection", [Orthant(6), Jump(6), KSparse(6, 2), Simplex(6)], ids=lambda p: type(p).__name__)
def test_shapes_and_dtypes(projection, dtype: torch.dtype, leading: tuple[int, ...]) -> None:
    v = randn(*leading, 6, dtype=dtype)
    codes = projection(v)
    assert codes.shape == v.shape
    assert codes.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert (codes >= 0).all()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(projection(v), codes)


def test_jump_threshold() -> None:
    projection = Jump(4, threshold_init=0.02)
    torch.testing.assert_close(projection.threshold, torch.full((4,), 0.02), rtol=1e-6, atol=0)
    assert projection.log_threshold.shape == (4,)
    with torch.no_grad():
        projection.log_threshold[1] = 0.0
    dynamics = projection.dynamics()
    assert dynamics["threshold_mean"].item() == pytest.approx((3 * 0.02 + 1) / 4)
    assert dynamics["threshold_max"].item() == 1.0
    assert not dynamics["threshold_mean"].requires_grad


def test_defaults_of_jump_are_those_of_the_paper() -> None:
    assert Jump(4).init_args == {"d_sae": 4, "threshold_init": 1e-3, "bandwidth": 1e-3}


@pytest.mark.parametrize("projection", [Orthant(4), KSparse(4, 1), Simplex(4)], ids=lambda p: type(p).__name__)
def test_projections_without_state(projection) -> None:
    assert projection.dynamics() == {}
    assert not list(projection.parameters())
    assert projection.shift_invariant == isinstance(projection, Simplex)


def test_only_the_simplex_ignores_shifts() -> None:
    v = randn(5, 6)
    for projection in (Orthant(6), Jump(6), KSparse(6, 2), Simplex(6)):
        same = torch.allclose(projection(v), projection(v - 3.0))
        assert same == projection.shift_invariant


@pytest.mark.parametrize("value", [0, -1, -7])
@pytest.mark.parametrize("make", [Orthant, Jump, Simplex, lambda d_sae: KSparse(d_sae, 1)])
def test_bad_d_sae(make, value: int) -> None:
    with pytest.raises(ValueError, match=f"d_sae must be at least 1, but is {value}"):
        make(value)


@pytest.mark.parametrize("k", [0, -3, 7])
def test_bad_k(k: int) -> None:
    with pytest.raises(ValueError, match=f"k must lie between 1 and d_sae = 6, but is {k}"):
        KSparse(6, k)


@pytest.mark.parametrize("name", ["threshold_init", "bandwidth"])
@pytest.mark.parametrize("value", [0.0, -0.5, float("nan")])
def test_bad_jump_arguments(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive and finite, but is {value}"):
        Jump(4, **{name: value})
