import copy
import pickle
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from sae_lightning.nn import (
    FIRING_THRESHOLD,
    L1,
    Affine,
    Decoder,
    DistanceWeightedL1,
    Jump,
    KSparse,
    Orthant,
    SAEOutput,
    Simplex,
    SparseAutoencoder,
    SquaredDistance,
)
from tests.helpers.saes import (
    ARCHITECTURES,
    BANDWIDTH,
    D_IN,
    D_SAE,
    Options,
    all_options,
    assert_same_as_reference,
    build,
    raw_inputs,
    training_loss,
)
from tests.helpers.tensors import LEADING_SHAPES, randn

pytestmark = pytest.mark.usefixtures("narrow")

ROUNDING = 2.0**-8  # unit roundoff of bfloat16: half the distance between 1 and the next number


def relu_sae(d_in: int = 4, d_sae: int = 6, **options: Any) -> SparseAutoencoder:
    return SparseAutoencoder(Affine(d_in, d_sae), Orthant(d_sae), Decoder(d_in, d_sae), **options)


def k_sparse(d_sae: int) -> KSparse:
    return KSparse(d_sae, 2)


# -- values and gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", all_options(), ids=str)
def test_outputs_loss_and_gradients_are_the_formulas(options: Options) -> None:
    sae, regularizer = build(options)
    sae.batches_silent[::2] = 10  # some latents are dead, for TopK's aux-k
    expected = assert_same_as_reference(sae, regularizer, raw_inputs(16, options))
    assert 0 < (expected.codes > 0).sum() < expected.codes.size  # the case is not a trivial one
    assert expected.penalty.mean() > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_gradients_without_regularizer(architecture: str, seed: int) -> None:
    options = Options(architecture)
    sae, _ = build(options, seed=seed)
    assert_same_as_reference(sae, None, raw_inputs(11, options, seed=seed))


@pytest.mark.parametrize("subtract", [False, True])
def test_straight_through_gradients_are_exercised(subtract: bool) -> None:
    options = Options("jumprelu", subtract_decoder_bias=subtract)
    sae, regularizer = build(options)
    x = raw_inputs(32, options)
    distance = (sae(x).pre_codes - sae.projection.threshold).abs()
    inside = (distance < BANDWIDTH / 2).double().mean().item()
    assert 0.2 < inside < 0.8  # the kernel contains some pre-codes and not others
    expected = assert_same_as_reference(sae, regularizer, x)
    assert np.all(expected.gradients["projection.log_threshold"] != 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_float32_is_close_to_float64(architecture: str) -> None:
    options = Options(architecture)
    x = raw_inputs(16, options)
    sae, regularizer = build(options)
    single, _ = build(options, torch.float32)
    exact, rounded = sae(x), single(x.float())
    for name in SAEOutput._fields:
        assert getattr(rounded, name).dtype == torch.float32
        torch.testing.assert_close(getattr(rounded, name).double(), getattr(exact, name), rtol=1e-4, atol=1e-4)
    training_loss(sae, regularizer, 0.1, x).backward()
    training_loss(single, regularizer, 0.1, x.float()).backward()
    for (name, wanted), parameter in zip(sae.named_parameters(), single.parameters(), strict=True):
        scale = wanted.grad.abs().max().item()
        torch.testing.assert_close(parameter.grad.double(), wanted.grad, rtol=0, atol=2e-4 * scale, msg=name)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_parameter_gets_a_gradient(architecture: str) -> None:
    # parameters unused in forward would abort DDP
    options = Options(architecture)
    sae, regularizer = build(options)
    training_loss(sae, regularizer, 0.1, raw_inputs(16, options)).backward()
    assert all(parameter.grad is not None for parameter in sae.parameters())


# -- autocast -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("extras", [{}, {"unit_norm": True, "subtract_decoder_bias": True}], ids=["plain", "extras"])
def test_autocast_touches_the_products_only(architecture: str, extras: dict[str, bool], narrow: bool) -> None:
    options = Options(architecture, standardize=False, **extras)
    sae, _ = build(options, torch.float32)
    x = raw_inputs(64, options).float()
    with torch.no_grad():
        full = sae(x)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = sae(x)
            projected_under_autocast = sae.projection(half.pre_codes)

        assert {field.dtype for field in half} == {torch.float32}
        if narrow:  # small products are not worth rounding
            assert all(torch.equal(a, b) for a, b in zip(full, half, strict=True))
            return

        # Both factors and the sum are rounded: three roundings (3.1 allows for their products) of sum |x||w| (and |b|).
        # A distance is that between rounded points, which differ from the points by `moved`, and is then rounded.
        seen = x - sae.decoder.bias if options.subtract_decoder_bias else x
        if architecture in ("spade", "ball"):
            moved = ROUNDING * (seen.abs()[:, None] + sae.encoder.weight.abs())
            moved = sae.encoder.scale * (2 * (seen[:, None] - sae.encoder.weight).abs() * moved + moved**2).sum(-1)
            bound = 1.01 * (moved + ROUNDING * full.pre_codes.abs())  # an offset is part of the sum that is rounded
        else:
            bound = 3.1 * ROUNDING * (seen.abs() @ sae.encoder.weight.abs().T + sae.encoder.bias.abs())
        error = (half.pre_codes - full.pre_codes).abs()
        assert (error <= bound + 1e-5).all()
        assert error.max() > 1e-5  # the product did run in bfloat16

        # the projection of the same pre-codes is the same, bit by bit
        assert torch.equal(projected_under_autocast, sae.projection(half.pre_codes))
        assert torch.equal(half.codes, projected_under_autocast)
        if architecture in ("relu", "spade", "ball"):  # continuous ones: a projection onto a convex set never expands
            assert ((half.codes - full.codes).norm(dim=-1) <= error.norm(dim=-1) + 1e-5).all()

        # the decoder's product is the only other place with rounding; the bias is added in float32
        error = (half.x_hat - sae.decode(half.codes)).abs()
        assert (error <= 3.1 * ROUNDING * (half.codes @ sae.decoder.atoms.abs()) + 1e-5).all()
        assert error.max() > 1e-5


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_losses_stay_float32_under_autocast(architecture: str) -> None:
    options = Options(architecture)
    sae, regularizer = build(options, torch.float32)
    sae.batches_silent[::2] = 10
    x = sae.standardize(raw_inputs(64, options).float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        penalty = regularizer(sae, x, sae.autoencode(x))
        loss = training_loss(sae, regularizer, 0.1, raw_inputs(64, options).float())
    assert penalty.dtype == torch.float32
    assert loss.dtype == torch.float32
    loss.backward()
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in sae.parameters())


# -- raw units and shapes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("leading", LEADING_SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_forward_is_decode_of_encode(architecture: str, dtype: torch.dtype, leading: tuple[int, ...]) -> None:
    options = Options(architecture)
    sae, _ = build(options, dtype)
    x = raw_inputs(12, options).to(dtype)[: int(np.prod(leading))].reshape(*leading, D_IN)
    out = sae(x)
    assert torch.equal(out.codes, sae.encode(x))
    assert torch.equal(out.x_hat, sae.decode(sae.encode(x)))
    assert out.x_hat.shape == (*leading, D_IN)
    assert out.codes.shape == out.pre_codes.shape == (*leading, D_SAE)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_leading_shapes_do_not_change_values(architecture: str) -> None:
    options = Options(architecture)
    sae, _ = build(options)
    x = raw_inputs(12, options)
    rows, blocks = sae(x), sae(x.reshape(2, 3, 2, D_IN))
    for name in SAEOutput._fields:
        torch.testing.assert_close(getattr(blocks, name).flatten(0, -2), getattr(rows, name), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(getattr(sae(x[3]), name), getattr(rows, name)[3], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("standardize", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs(standardize: bool, dtype: torch.dtype) -> None:
    options = Options("relu", standardize=standardize)
    sae, _ = build(options, torch.float32)
    x = raw_inputs(8, options).to(dtype)
    out = sae(x)
    assert {field.dtype for field in out} == {torch.float32}
    for actual, expected in zip(out, sae(x.float()), strict=True):
        torch.testing.assert_close(actual, expected)


def test_autoencode_works_in_standardized_units() -> None:
    options = Options("spade")
    sae, _ = build(options)
    x = raw_inputs(10, options)
    inner, outer = sae.autoencode(sae.standardize(x)), sae(x)
    assert torch.equal(inner.codes, outer.codes)
    assert torch.equal(inner.pre_codes, sae.pre_codes(sae.standardize(x)))
    torch.testing.assert_close(
        inner.x_hat * sae.standardizer.input_scale + sae.standardizer.input_mean, outer.x_hat, rtol=1e-12, atol=1e-12
    )


def test_standardisation_is_saved_with_the_weights() -> None:
    options = Options("topk")
    sae, _ = build(options)
    sae.count_silence(torch.zeros(D_SAE, dtype=torch.bool))
    other, _ = build(options, seed=5)
    other.load_state_dict(sae.state_dict())
    x = raw_inputs(10, options)
    assert torch.equal(other(x).x_hat, sae(x).x_hat)
    assert torch.equal(other.batches_silent, sae.batches_silent)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("clone", [copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))], ids=["copy", "pickle"])
def test_copies_compute_the_same(architecture: str, clone) -> None:
    options = Options(architecture)
    sae, _ = build(options)
    x = raw_inputs(6, options)
    twin = clone(sae)
    assert torch.equal(twin(x).x_hat, sae(x).x_hat)
    assert twin.encoder.init_args == sae.encoder.init_args
    assert twin.encoder.weight is not sae.encoder.weight


# -- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3,), (2, 5), (4, 1)], ids=str)
@pytest.mark.parametrize("method", ["forward", "encode", "standardize"])
def test_wrong_d_in(method: str, shape: tuple[int, ...]) -> None:
    message = rf"d_in = 4 in their last dimension, but have shape \({', *'.join(map(str, shape))},?\)"
    with pytest.raises(ValueError, match=message):
        getattr(relu_sae(), method)(torch.zeros(shape))


def test_wrong_d_sae() -> None:
    with pytest.raises(ValueError, match=r"d_sae = 6 in their last dimension, but have shape \(2, 4\)"):
        relu_sae().decode(torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("encoder", "projection", "decoder", "named"),
    [
        ((4, 6), 5, (4, 6), r"\(6, 4\), \(5,\) and \(6, 4\)"),
        ((4, 6), 6, (4, 7), r"\(6, 4\), \(6,\) and \(7, 4\)"),
        ((4, 6), 6, (3, 6), r"\(6, 4\), \(6,\) and \(6, 3\)"),
        ((6, 4), 6, (4, 6), r"\(4, 6\), \(6,\) and \(6, 4\)"),
    ],
)
def test_parts_that_do_not_fit(encoder: tuple[int, int], projection: int, decoder: tuple[int, int], named: str) -> None:
    with pytest.raises(ValueError, match="must agree on d_in and d_sae.*" + named):
        SparseAutoencoder(Affine(*encoder), Orthant(projection), Decoder(*decoder))


@pytest.mark.parametrize("projection", [Orthant(6), Jump(6), KSparse(6, 2)], ids=lambda p: type(p).__name__)
def test_distances_need_the_simplex(projection) -> None:
    name = type(projection).__name__
    with pytest.raises(ValueError, match=f"SquaredDistance .* never positive.*{name}.*use Simplex.*offset_init"):
        SparseAutoencoder(SquaredDistance(4, 6), projection, Decoder(4, 6))


@pytest.mark.parametrize("regularizer", [None, L1, DistanceWeightedL1])
@pytest.mark.parametrize("make", [Orthant, partial(Jump, threshold_init=0.3, bandwidth=BANDWIDTH), Simplex, k_sparse])
def test_distances_with_offsets_may_have_any(make: Any, regularizer: Any) -> None:
    encoder = SquaredDistance(D_IN, D_SAE, lambda_init=0.3, offset_init=1.0)
    sae = SparseAutoencoder(encoder, make(D_SAE), Decoder(D_IN, D_SAE), standardize=False).double()
    with torch.no_grad():
        encoder.weight.copy_(0.6 * randn(D_SAE, D_IN, seed=1))
        encoder.offset.copy_(2.0 + randn(D_SAE, seed=2))
        sae.decoder.weight.copy_(randn(D_SAE, D_IN, seed=3))
    regularizer = regularizer and regularizer(D_SAE)
    x = randn(12, D_IN, seed=4)
    assert (sae.encode(x) > 0).any()
    assert_same_as_reference(sae, regularizer, x)


def test_affine_encoder_may_have_the_simplex() -> None:
    sae = SparseAutoencoder(Affine(4, 6), Simplex(6), Decoder(4, 6))
    assert torch.allclose(sae.encode(torch.randn(5, 4)).sum(-1), torch.ones(5))


def test_subtracting_needs_a_bias() -> None:
    with pytest.raises(ValueError, match="subtract_decoder_bias needs a decoder with a bias"):
        SparseAutoencoder(Affine(4, 6), Orthant(6), Decoder(4, 6, bias=False), subtract_decoder_bias=True)


# -- firing and silence ---------------------------------------------------------------------------------------------


def test_firing_threshold_is_the_one_of_the_paper() -> None:
    assert FIRING_THRESHOLD == 1e-6


@pytest.mark.parametrize("leading", [(1,), (6,), (2, 3)], ids=str)
def test_fired(leading: tuple[int, ...]) -> None:
    codes = torch.zeros(*leading, 4, dtype=torch.float64)
    flat = codes.view(-1, 4)
    flat[-1, 1] = 2e-6
    flat[0, 2] = 1e-6  # at the threshold: silent
    flat[0, 3] = 5.0
    fired = SparseAutoencoder.fired(codes)
    assert fired.dtype == torch.bool
    assert fired.tolist() == [False, True, False, True]


def test_count_silence() -> None:
    sae = relu_sae(d_sae=3)
    assert sae.batches_silent.tolist() == [0, 0, 0]
    for fired in ([True, False, False], [True, False, True], [False, False, False]):
        sae.count_silence(torch.tensor(fired))
    assert sae.batches_silent.tolist() == [1, 3, 1]
    assert sae.batches_silent.dtype == torch.int64
    assert "batches_silent" in sae.state_dict()


def test_dynamics_are_those_of_the_parts() -> None:
    assert relu_sae().dynamics() == {}
    spade = SparseAutoencoder(SquaredDistance(4, 6, lambda_init=0.5), Simplex(6), Decoder(4, 6))
    assert {name: value.item() for name, value in spade.dynamics().items()} == pytest.approx({"lambda": 0.5})
    jump = SparseAutoencoder(Affine(4, 6), Jump(6, threshold_init=0.25), Decoder(4, 6))
    assert {name: value.item() for name, value in jump.dynamics().items()} == pytest.approx(
        {"threshold_mean": 0.25, "threshold_max": 0.25}
    )
    assert not any(value.requires_grad for value in (spade.dynamics() | jump.dynamics()).values())
