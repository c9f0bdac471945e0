import math

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from sae_lightning.nn import Affine, Simplex, SquaredDistance
from tests.helpers.tensors import LEADING_SHAPES, numpy, randn


def affine(bias: bool = True, scale: float = 1.0) -> Affine:
    encoder = Affine(5, 7, bias=bias, pre_code_scale=scale).double()
    with torch.no_grad():
        encoder.weight.copy_(randn(7, 5, seed=1))
        if bias:
            encoder.bias.copy_(randn(7, seed=2))
    return encoder


@pytest.mark.parametrize("leading", LEADING_SHAPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("bias", [True, False])
def test_affine(bias: bool, scale: float, leading: tuple[int, ...]) -> None:
    encoder = affine(bias, scale)
    x = randn(*leading, 5)
    actual = encoder(x)
    assert actual.shape == (*leading, 7)
    for at in np.ndindex(*leading):
        for i in range(7):
            total = sum(x[at][j].item() * encoder.weight[i, j].item() for j in range(5))
            expected = scale * (total + (encoder.bias[i].item() if bias else 0.0))
            assert actual[at][i].item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_affine_without_bias_has_no_bias_parameter() -> None:
    assert [name for name, _ in Affine(3, 4, bias=False).named_parameters()] == ["weight"]
    assert {name: tuple(p.shape) for name, p in Affine(3, 4).named_parameters()} == {"weight": (4, 3), "bias": (4,)}


@pytest.mark.parametrize("leading", LEADING_SHAPES, ids=str)
def test_squared_distance(leading: tuple[int, ...]) -> None:
    encoder = SquaredDistance(5, 7, lambda_init=0.3).double()
    with torch.no_grad():
        encoder.weight.copy_(randn(7, 5, seed=1))
    x = randn(*leading, 5)
    scale = math.log1p(math.exp(encoder.raw_lambda.item()))
    distances = cdist(numpy(x).reshape(-1, 5), numpy(encoder.weight), "sqeuclidean").reshape(*leading, 7)
    pre_codes = encoder(x)
    np.testing.assert_allclose(numpy(pre_codes), -scale * distances, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(numpy(encoder.distances(pre_codes)), distances, rtol=1e-12, atol=1e-12)
    assert encoder.nonpositive
    assert (pre_codes <= 1e-12).all()


@pytest.mark.parametrize("leading", LEADING_SHAPES, ids=str)
def test_squared_distance_with_offsets(leading: tuple[int, ...]) -> None:
    plain, encoder = SquaredDistance(5, 7, 0.3).double(), SquaredDistance(5, 7, 0.3, offset_init=2.0).double()
    assert torch.equal(encoder.offset, torch.full((7,), 2.0, dtype=torch.float64))
    offset = randn(7, seed=2)
    with torch.no_grad():
        plain.weight.copy_(randn(7, 5, seed=1))
        encoder.weight.copy_(plain.weight)
        encoder.offset.copy_(offset)
    x = randn(*leading, 5)
    pre_codes = encoder(x)
    np.testing.assert_allclose(numpy(pre_codes), numpy(plain(x) + offset), rtol=1e-12, atol=1e-12)
    distances = cdist(numpy(x).reshape(-1, 5), numpy(encoder.weight), "sqeuclidean").reshape(*leading, 7)
    np.testing.assert_allclose(numpy(encoder.distances(pre_codes)), distances, rtol=1e-12, atol=1e-12)
    assert not encoder.nonpositive
    latents = torch.tensor([1, 4, 5])
    left = encoder.without_offset(pre_codes)[..., latents]
    np.testing.assert_allclose(numpy(left), numpy(plain(x)[..., latents]), rtol=1e-12, atol=1e-12)


def test_without_offsets_nothing_is_new() -> None:
    encoder = SquaredDistance(5, 7)
    assert encoder.offset is None
    assert set(encoder.state_dict()) == {"weight", "raw_lambda"}  # as in checkpoints that were written before
    pre_codes = encoder(randn(3, 5, dtype=torch.float32))
    assert encoder.without_offset(pre_codes) is pre_codes
    assert set(encoder.dynamics()) == {"lambda"}


def test_offsets_are_watched_and_trained() -> None:
    encoder = SquaredDistance(3, 4, offset_init=-1)
    with torch.no_grad():
        encoder.offset[0] = 3.0
    assert encoder.dynamics()["offset_mean"].item() == 0.0
    assert not encoder.dynamics()["offset_mean"].requires_grad
    encoder(torch.ones(5, 3)).sum().backward()
    assert encoder.offset.grad.tolist() == [5.0] * 4


def test_with_offsets_a_latent_sees_a_ball() -> None:
    encoder = SquaredDistance(5, 7, 0.3, offset_init=1.0).double()
    with torch.no_grad():
        encoder.weight.copy_(randn(7, 5, seed=1))
        encoder.offset.copy_(torch.linspace(-0.5, 4.0, 7))
    x = randn(500, 5)
    radius = numpy((encoder.offset / encoder.scale).clamp_min(0).sqrt())
    inside = cdist(numpy(x), numpy(encoder.weight)) < radius
    assert inside.any(0)[1:].all()
    np.testing.assert_array_equal(numpy(encoder(x)) > 0, inside)


def test_on_the_simplex_offsets_and_biases_are_the_same() -> None:
    distance, affine = SquaredDistance(5, 7, 0.3, offset_init=0.0).double(), Affine(5, 7).double()
    with torch.no_grad():
        distance.weight.copy_(randn(7, 5, seed=1))
        distance.offset.copy_(randn(7, seed=2))
        affine.weight.copy_(2 * distance.scale * distance.weight)
        affine.bias.copy_(distance.offset - distance.scale * distance.weight.square().sum(1))
    x, simplex = randn(50, 5), Simplex(7)
    np.testing.assert_allclose(numpy(simplex(distance(x))), numpy(simplex(affine(x))), atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_offset(value: float) -> None:
    with pytest.raises(ValueError, match=f"offset_init must be finite or None, but is {value}"):
        SquaredDistance(3, 4, offset_init=value)


@pytest.mark.parametrize("value", [1e-30, 1e-12, 1e-6, 1e-3, 0.25, 1.0, 5.0, 19.99, 20.01, 88.0, 1e4, 1e8, 1e30])
def test_lambda_is_kept(value: float) -> None:
    # a float32 raw value of up to 70 in size has an error of 4e-6, which is lambda's relative error where it is tiny
    assert SquaredDistance(3, 4, lambda_init=value).scale.item() == pytest.approx(value, rel=5e-6)
    encoder = SquaredDistance(3, 4).double()
    encoder.set_lambda(value)
    assert encoder.scale.item() == pytest.approx(value, rel=1e-9)  # softplus is linear from 20 on: off by e^-20


def test_lambda_is_watched_and_trained() -> None:
    encoder = SquaredDistance(3, 4, lambda_init=0.5)
    assert encoder.dynamics()["lambda"].item() == pytest.approx(0.5)
    assert not encoder.dynamics()["lambda"].requires_grad
    assert {name for name, _ in encoder.named_parameters()} == {"weight", "raw_lambda"}
    encoder.scale.backward()
    assert encoder.raw_lambda.grad.item() == pytest.approx(1 - math.exp(-0.5))  # derivative of softplus


def test_affine_has_no_dynamics() -> None:
    assert Affine(3, 4).dynamics() == {}
    assert not Affine(3, 4).nonpositive


@pytest.mark.parametrize("make", [Affine, SquaredDistance])
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 4), "d_in must be at least 1, but is 0"),
        ((-2, 4), "d_in must be at least 1, but is -2"),
        ((3, 0), "d_sae must be at least 1, but is 0"),
        ((3, -5), "d_sae must be at least 1, but is -5"),
    ],
)
def test_bad_sizes(make, sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(*sizes)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_bad_pre_code_scale(value: float) -> None:
    with pytest.raises(ValueError, match=f"pre_code_scale must be positive and finite, but is {value}"):
        Affine(3, 4, pre_code_scale=value)


@pytest.mark.parametrize("value", [0.0, -0.25, float("nan"), float("inf")])
def test_bad_lambda(value: float) -> None:
    message = f"lambda_init must be positive and finite, but is {value}"
    with pytest.raises(ValueError, match=message):
        SquaredDistance(3, 4, lambda_init=value)
    with pytest.raises(ValueError, match=message):
        SquaredDistance(3, 4).set_lambda(value)
