from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch

from sae_lightning.nn import (
    FIRING_THRESHOLD,
    Affine,
    Decoder,
    Jump,
    KSparse,
    Orthant,
    Projection,
    Simplex,
    SparseAutoencoder,
    SquaredDistance,
)
from sae_lightning.nn.initialization import (
    initialize_from_data,
    initialize_weights,
    new_generator,
)
from tests.helpers.processes import deadline
from tests.helpers.tensors import randn

D_IN, D_SAE = 8, 64


def calibrate_lambda(sae: SparseAutoencoder, x: torch.Tensor, l0: float) -> float:
    """Set lambda of an SAE's encoder to an L0; returns what was reached."""
    return sae.encoder.calibrate(x, sae.projection, l0)


def spade(d_in: int = D_IN, d_sae: int = D_SAE) -> SparseAutoencoder:
    return SparseAutoencoder(SquaredDistance(d_in, d_sae), Simplex(d_sae), Decoder(d_in, d_sae), standardize=False)


def jump_relu(d_in: int = D_IN, d_sae: int = D_SAE) -> SparseAutoencoder:
    return SparseAutoencoder(Affine(d_in, d_sae), Jump(d_sae), Decoder(d_in, d_sae), standardize=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def assert_distinct(rows: torch.Tensor) -> None:
    distances = torch.cdist(rows.double(), rows.double()).fill_diagonal_(1.0)
    assert distances.min() > 0


# -- the generator --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("global_rng")
@pytest.mark.parametrize("seed", [0, 5, 2**40, -1])
def test_generator_depends_on_the_seed_and_not_on_what_was_drawn(seed: int) -> None:
    torch.manual_seed(seed)
    first = torch.randn(5, generator=new_generator())
    torch.randn(1000)
    second = torch.randn(5, generator=new_generator())
    assert torch.equal(first, second)
    torch.manual_seed(seed + 1)
    assert not torch.equal(first, torch.randn(5, generator=new_generator()))


@pytest.mark.usefixtures("global_rng")
@pytest.mark.parametrize("how", ["unit", "normal", "data"])
@pytest.mark.parametrize("make", [spade, jump_relu])
def test_same_seed_same_draw(make, how: str) -> None:
    data = randn(40, D_IN, dtype=torch.float32)  # fewer samples than latents: all kinds of draws are made
    weights = []
    for used in (0, 1, 777):
        torch.manual_seed(3)
        torch.randn(used)
        state = torch.get_rng_state()
        sae = make()
        if how == "data":
            initialize_from_data(sae, data, new_generator())
        else:
            initialize_weights(sae, how, new_generator())
        assert torch.equal(torch.get_rng_state(), state)  # and nobody else's draws are changed by it
        weights.append(sae.encoder.weight)
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0], weights[2])


# -- random rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [spade, jump_relu])
def test_unit_rows(make) -> None:
    sae = make()
    initialize_weights(sae, "unit", generator())
    torch.testing.assert_close(sae.encoder.weight.norm(dim=1), torch.ones(D_SAE), rtol=0, atol=1e-6)
    assert torch.equal(sae.encoder.weight, sae.decoder.weight)
    assert sae.encoder.weight is not sae.decoder.weight
    assert sae.encoder.weight.data_ptr() != sae.decoder.weight.data_ptr()
    assert_distinct(sae.encoder.weight.detach())


def test_normal_rows() -> None:
    sae = jump_relu(50, 400)
    initialize_weights(sae, "normal", generator())
    weight = sae.encoder.weight.detach()
    assert torch.equal(weight, sae.decoder.weight)
    # 20,000 draws: the mean has a deviation of 0.007, the standard deviation one of 0.005
    assert abs(weight.mean().item()) < 0.03
    assert weight.std().item() == pytest.approx(1, abs=0.02)
    assert weight.norm(dim=1).std() > 0.1


def test_random_rows_leave_the_rest_alone() -> None:
    sae = jump_relu()
    before = {name: p.clone() for name, p in sae.named_parameters() if not name.endswith("weight")}
    initialize_weights(sae, "unit", generator())
    assert before
    assert all(torch.equal(dict(sae.named_parameters())[name], value) for name, value in before.items())
    assert all(p.requires_grad and p.grad_fn is None for p in sae.parameters())


# -- rows from data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [D_SAE, D_SAE + 1, 500])
def test_prototypes_are_data_points(n: int) -> None:
    data, sae = randn(n, D_IN, dtype=torch.float32), spade()
    initialize_from_data(sae, data, generator())
    points = {tuple(row) for row in data.tolist()}
    rows = [tuple(row) for row in sae.encoder.weight.tolist()]
    assert set(rows) <= points
    assert len(set(rows)) == D_SAE  # drawn without replacement
    assert torch.equal(sae.encoder.weight, sae.decoder.weight)


def test_affine_rows_are_directions_of_data_points() -> None:
    data, sae = 5 * randn(200, D_IN, dtype=torch.float32), jump_relu()
    initialize_from_data(sae, data, generator())
    weight = sae.encoder.weight.detach()
    torch.testing.assert_close(weight.norm(dim=1), torch.ones(D_SAE), rtol=0, atol=1e-6)
    cosines = weight @ (data / data.norm(dim=1, keepdim=True)).T
    torch.testing.assert_close(cosines.amax(1), torch.ones(D_SAE), rtol=0, atol=1e-6)
    assert torch.equal(weight, sae.decoder.weight)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("n", [1, 2, 20, D_SAE - 1])
@pytest.mark.parametrize("make", [spade, jump_relu])
def test_fewer_samples_than_latents(make, n: int, scale: float) -> None:
    data, sae = scale * randn(n, D_IN, dtype=torch.float32), make()
    initialize_from_data(sae, data, generator())
    weight = sae.encoder.weight.detach()
    assert_distinct(weight)
    assert torch.equal(weight, sae.decoder.weight)
    if make is spade:  # every prototype is close to a sample (within noise of 0.1 %), and every sample has one
        distances = torch.cdist(weight, data) / data.square().mean().sqrt()
        assert 0 < distances.amin(1).max() < 0.01
        assert distances.amin(0).max() < 0.01
    else:
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(D_SAE), rtol=0, atol=1e-6)


def test_another_seed_takes_other_data_points() -> None:
    data = randn(500, D_IN, dtype=torch.float32)
    first, second = spade(), spade()
    initialize_from_data(first, data, generator(0))
    initialize_from_data(second, data, generator(1))
    assert not torch.equal(first.encoder.weight, second.encoder.weight)


def test_data_stays_as_it_is() -> None:
    data = randn(10, D_IN, dtype=torch.float32)
    before = data.clone()
    initialize_from_data(jump_relu(), data, generator())
    assert torch.equal(data, before)


# -- lambda ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("l0", [1, 1.5, 4, 16, 40])
def test_calibration_reaches_l0_at_any_scale_of_the_data(l0: float, scale: float) -> None:
    x, sae = scale * randn(512, D_IN, dtype=torch.float32), spade()
    initialize_from_data(sae, x, generator())
    with deadline(20):
        reached = calibrate_lambda(sae, x, l0)
    # The mean over 512 samples is a step function of lambda. Latents leave the supports one after the other, so that
    # its steps are 1/512; two may coincide in float32.
    assert l0 - 2 / 512 <= reached <= l0
    # the SAE itself computes pre-codes with a lambda rounded to float32: a few codes at the edge may differ
    measured = (sae.encode(x) > FIRING_THRESHOLD).sum(-1).double().mean().item()
    assert measured == pytest.approx(reached, abs=4 / 512)


def test_calibration_is_scale_free() -> None:
    lambdas = []
    for scale in (1e-3, 1.0, 1e3):
        x, sae = scale * randn(512, D_IN, dtype=torch.float32), spade()
        initialize_from_data(sae, x, generator())
        calibrate_lambda(sae, x, 10)
        lambdas.append(sae.encoder.scale.item() * scale**2)
    np.testing.assert_allclose(lambdas, lambdas[1], rtol=1e-3)


def test_calibration_with_all_latents() -> None:
    x, sae = randn(64, D_IN, dtype=torch.float32), spade()
    initialize_from_data(sae, x, generator())
    assert calibrate_lambda(sae, x, D_SAE) == D_SAE


def test_calibration_with_one_latent() -> None:
    x, sae = randn(64, D_IN, dtype=torch.float32), spade(d_sae=1)
    initialize_from_data(sae, x, generator())
    assert calibrate_lambda(sae, x, 1) == 1


def test_calibration_uses_the_first_512_samples() -> None:
    x = randn(512, D_IN, dtype=torch.float32)
    first, second = spade(), spade()
    for sae, sample in ((first, x), (second, torch.cat([x, 100 * x]))):
        initialize_from_data(sae, x, generator())
        calibrate_lambda(sae, sample, 10)
    assert torch.equal(first.encoder.raw_lambda, second.encoder.raw_lambda)


def test_calibration_changes_lambda_only() -> None:
    x, sae = randn(100, D_IN, dtype=torch.float32), spade()
    initialize_from_data(sae, x, generator())
    before = {name: p.clone() for name, p in sae.named_parameters()}
    calibrate_lambda(sae, x, 10)
    changed = [name for name, p in sae.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["encoder.raw_lambda"]
    assert sae.encoder.raw_lambda.requires_grad
    assert sae.encoder.raw_lambda.grad is None


def ball(projection: Projection, offset: float = 0.5) -> SparseAutoencoder:
    encoder = SquaredDistance(D_IN, projection.d_sae, offset_init=offset)
    return SparseAutoencoder(encoder, projection, Decoder(D_IN, projection.d_sae), standardize=False)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("l0", [1, 5.5, 40])
@pytest.mark.parametrize("projection", [Orthant, partial(Jump, threshold_init=0.1), partial(KSparse, k=3), Simplex])
def test_calibration_with_offsets(projection: Callable[[int], Projection], l0: float, scale: float) -> None:
    x, sae = scale * randn(512, D_IN, dtype=torch.float32), ball(projection(D_SAE))
    initialize_from_data(sae, x, generator())
    reached = calibrate_lambda(sae, x, l0)
    assert l0 - 2 / 512 <= reached <= l0
    # the k-sparse projection takes the k largest of so many positive pre-codes
    found = sae.pre_codes(x) if isinstance(sae.projection, KSparse) else sae.encode(x)
    assert (found > FIRING_THRESHOLD).sum(-1).double().mean().item() == pytest.approx(reached, abs=4 / 512)
    assert torch.equal(sae.encoder.offset, torch.full((D_SAE,), 0.5))


@pytest.mark.parametrize(
    ("projection", "offset"), [(Orthant, 0.0), (Orthant, -1.0), (partial(Jump, threshold_init=0.6), 0.5)]
)
def test_calibration_with_offsets_too_low(projection: Callable[[int], Projection], offset: float) -> None:
    message = rf"l0_init = 4 needs offsets high enough .*offset_init = {offset} with (Orthant|Jump)"
    with pytest.raises(ValueError, match=message):
        calibrate_lambda(ball(projection(D_SAE), offset), torch.randn(10, D_IN), 4)


def test_calibration_needs_a_distance_encoder() -> None:
    with pytest.raises(ValueError, match="l0_init needs the encoder SquaredDistance, but got Affine"):
        calibrate_lambda(jump_relu(), torch.randn(10, D_IN), 4)


@pytest.mark.parametrize("l0", [0, 0.5, -3, D_SAE + 1, float("nan")])
def test_calibration_to_an_impossible_l0(l0: float) -> None:
    with pytest.raises(ValueError, match=f"l0_init must lie between 1 and d_sae = {D_SAE}, but is {l0}"):
        calibrate_lambda(spade(), torch.randn(10, D_IN), l0)
