from typing import Any

import numpy as np
import pytest
import torch

from sae_lightning.nn import (
    L0,
    L1,
    Affine,
    AuxK,
    Decoder,
    DistanceWeightedL1,
    Jump,
    KSparse,
    Orthant,
    Regularizer,
    Simplex,
    SparseAutoencoder,
    SquaredDistance,
)
from tests.helpers import reference
from tests.helpers.saes import (
    ARCHITECTURES,
    D_IN,
    D_SAE,
    GAMMA,
    K,
    Options,
    assert_same_as_reference,
    build,
    raw_inputs,
    to_reference,
    training_loss,
)
from tests.helpers.tensors import numpy, randn

ALL = [L1, L0, DistanceWeightedL1, AuxK]


# -- values ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("leading", [(), (1,), (6,), (2, 3), (0,)], ids=str)
def test_one_value_per_sample(architecture: str, leading: tuple[int, ...]) -> None:
    options = Options(architecture)
    sae, regularizer = build(options)
    sae.batches_silent[1::2] = 10
    x = raw_inputs(6, options)
    expected = reference.evaluate(to_reference(sae, regularizer, 1.0), numpy(x)).penalty
    n = int(np.prod(leading))
    standardized = sae.standardize(x[:n].reshape(*leading, D_IN))
    penalty = regularizer(sae, standardized, sae.autoencode(standardized))
    assert penalty.shape == leading
    assert penalty.dtype == torch.float64
    np.testing.assert_allclose(numpy(penalty).reshape(-1), expected[:n], rtol=1e-11)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_gamma_scales_the_gradient(architecture: str) -> None:
    options = Options(architecture)
    sae, regularizer = build(options)
    sae.batches_silent[1::2] = 10
    for gamma in (0.0, 1e-3, 10.0):
        assert_same_as_reference(sae, regularizer, raw_inputs(9, options), gamma)


def test_l0_counts_the_codes() -> None:
    options = Options("jumprelu")
    sae, regularizer = build(options)
    x = sae.standardize(raw_inputs(9, options))
    out = sae.autoencode(x)
    assert torch.equal(regularizer(sae, x, out), (out.codes > 0).sum(-1).double())


def test_l0_pulls_on_thresholds_only() -> None:
    options = Options("jumprelu")
    sae, regularizer = build(options)
    x = sae.standardize(raw_inputs(32, options))
    regularizer(sae, x, sae.autoencode(x)).mean().backward()
    pulled = {name for name, p in sae.named_parameters() if p.grad is not None and bool((p.grad != 0).any())}
    assert pulled == {"projection.log_threshold"}
    assert (sae.projection.log_threshold.grad <= 0).all()  # a larger threshold means fewer codes


def test_distance_weighted_l1_reaches_codes_and_prototypes() -> None:
    options = Options("spade", decoder_bias=False)
    sae, regularizer = build(options)
    x = sae.standardize(raw_inputs(9, options))
    regularizer(sae, x, sae.autoencode(x)).mean().backward()
    assert sae.encoder.weight.grad.abs().max() > 1e-3
    assert sae.encoder.raw_lambda.grad.item() < 0  # sharper codes lie closer to the input
    assert sae.decoder.weight.grad is None


def test_distance_weighted_l1_leaves_offsets_out() -> None:
    # the same codes at the same distances cost the same, whatever part of the pre-codes is offset
    sae, regularizer = build(Options("ball"))
    x = sae.standardize(raw_inputs(9, Options("ball")))
    out = sae.autoencode(x)
    distances = torch.cdist(x, sae.encoder.weight).square()
    torch.testing.assert_close(regularizer(sae, x, out), (out.codes * distances).sum(-1))
    assert (out.codes > 0).any()
    fixed = out._replace(codes=out.codes.detach())
    regularizer(sae, x, fixed).sum().backward()
    assert sae.encoder.offset.grad.abs().max() < 1e-12  # an offset changes codes, and no distance
    assert sae.encoder.weight.grad.abs().max() > 1e-3


# -- aux-k ----------------------------------------------------------------------------------------------------------


def topk(k_aux: int | None = 2, dead: list[int] | None = None, **options: Any) -> tuple[SparseAutoencoder, AuxK]:
    sae, _ = build(Options("topk", **options))
    regularizer = AuxK(D_SAE, k_aux=k_aux, dead_after=4)
    sae.batches_silent[[] if dead is None else dead] = 4
    return sae, regularizer


@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("subtract", [True, False])
@pytest.mark.parametrize("k_aux", [1, 2, 5, D_SAE, 10 * D_SAE])
@pytest.mark.parametrize("dead", [[], [2], [0, 3, 8], list(range(D_SAE))], ids=["none", "one", "some", "all"])
def test_auxk_is_its_formula(dead: list[int], k_aux: int, subtract: bool, unit_norm: bool) -> None:
    options = {"subtract_decoder_bias": subtract, "unit_norm": unit_norm}
    sae, regularizer = topk(k_aux, dead, **options)
    assert_same_as_reference(sae, regularizer, raw_inputs(12, Options("topk", **options)))


def test_auxk_of_one_sample_written_out() -> None:
    sae = SparseAutoencoder(Affine(2, 3, bias=False), KSparse(3, 1), Decoder(2, 3), standardize=False)
    with torch.no_grad():
        sae.encoder.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.5], [0.0, -1.0]]))
        sae.decoder.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
    sae.batches_silent[1:] = 20
    x = torch.tensor([[3.0, 2.0]])
    out = sae.autoencode(x)
    assert out.codes.tolist() == [[3.0, 0.0, 0.0]]
    # residual (0, 2); latents 1 and 2 are dead with pre-codes 1 and -2, so that latent 1 explains (0, 1) of it
    assert AuxK(3)(sae, x, out).tolist() == [1.0]


def test_auxk_reaches_dead_latents_and_nothing_else() -> None:
    dead = [0, 3, 4, 8]
    sae, regularizer = topk(dead=dead)
    x = sae.standardize(raw_inputs(64, Options("topk")))
    regularizer(sae, x, sae.autoencode(x)).mean().backward()
    alive = [i for i in range(D_SAE) if i not in dead]
    for gradient in (sae.encoder.weight.grad, sae.decoder.weight.grad, sae.encoder.bias.grad[:, None]):
        assert (gradient[dead].abs().amax(1) > 0).all()
        assert (gradient[alive] == 0).all()  # through x_hat it would be theirs, too: the residual is held fixed
    assert sae.decoder.bias.grad is None


def test_auxk_is_zero_while_no_latent_is_dead() -> None:
    sae, regularizer = topk()
    sae.batches_silent.fill_(3)
    x = raw_inputs(9, Options("topk"))
    standardized = sae.standardize(x)
    penalty = regularizer(sae, standardized, sae.autoencode(standardized))
    assert penalty.tolist() == [0.0] * 9
    assert penalty.dtype == torch.float64
    with_auxk = torch.autograd.grad(training_loss(sae, regularizer, GAMMA, x), list(sae.parameters()))
    without = torch.autograd.grad(training_loss(sae, None, GAMMA, x), list(sae.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(with_auxk, without, strict=True))


@pytest.mark.parametrize(("silent", "is_dead"), [(3, False), (4, True), (5, True)])
def test_dead_after(silent: int, is_dead: bool) -> None:
    sae, regularizer = topk()
    sae.batches_silent[2] = silent
    x = sae.standardize(raw_inputs(9, Options("topk")))
    assert bool(regularizer(sae, x, sae.autoencode(x)).sum() > 0) == is_dead


@pytest.mark.parametrize(("d_in", "k_aux"), [(1, 1), (2, 1), (5, 2), (8, 4)])
def test_default_k_aux_is_half_of_d_in(d_in: int, k_aux: int) -> None:
    sae = SparseAutoencoder(Affine(d_in, 12), KSparse(12, 1), Decoder(d_in, 12), standardize=False).double()
    with torch.no_grad():
        sae.encoder.weight.copy_(randn(12, d_in))
        sae.encoder.bias.fill_(10.0)  # all pre-codes are positive
        sae.decoder.weight.copy_(randn(12, d_in, seed=1))
    sae.batches_silent.fill_(20)
    x = randn(6, d_in, seed=2)
    out = sae.autoencode(x)
    assert torch.equal(AuxK(12)(sae, x, out), AuxK(12, k_aux=k_aux)(sae, x, out))
    assert not torch.equal(AuxK(12)(sae, x, out), AuxK(12, k_aux=k_aux + 1)(sae, x, out))


def test_auxk_leaves_the_silence_counter_alone() -> None:
    sae, regularizer = topk(dead=[1, 2])
    before = sae.batches_silent.clone()
    x = sae.standardize(raw_inputs(9, Options("topk")))
    regularizer(sae, x, sae.autoencode(x))
    assert torch.equal(sae.batches_silent, before)


# -- checks ---------------------------------------------------------------------------------------------------------


def composed(encoder: Any, projection: Any) -> SparseAutoencoder:
    return SparseAutoencoder(encoder(D_IN, D_SAE), projection(D_SAE), Decoder(D_IN, D_SAE))


def k_sparse(d_sae: int) -> KSparse:
    return KSparse(d_sae, K)


@pytest.mark.parametrize("projection", [Orthant, Simplex, k_sparse])
def test_l0_needs_thresholds(projection: Any) -> None:
    sae = composed(Affine, projection)
    with pytest.raises(ValueError, match=f"L0 needs the projection Jump .*but got {type(sae.projection).__name__}"):
        L0(D_SAE).check(sae)


def test_distance_weighted_l1_needs_prototypes() -> None:
    with pytest.raises(ValueError, match=r"DistanceWeightedL1 needs the encoder SquaredDistance .*but got Affine"):
        DistanceWeightedL1(D_SAE).check(composed(Affine, Simplex))


@pytest.mark.parametrize(
    ("regularizer", "encoder", "projection"),
    [
        (L1, Affine, Orthant),
        (L1, Affine, Jump),
        (L0, Affine, Jump),
        (DistanceWeightedL1, SquaredDistance, Simplex),
        (AuxK, Affine, k_sparse),
        (AuxK, Affine, Orthant),
    ],
)
def test_parts_that_fit(regularizer: type[Regularizer], encoder: Any, projection: Any) -> None:
    regularizer(D_SAE).check(composed(encoder, projection))


@pytest.mark.parametrize("regularizer", ALL)
@pytest.mark.parametrize("value", [0, -4])
def test_bad_d_sae(regularizer: type[Regularizer], value: int) -> None:
    with pytest.raises(ValueError, match=f"d_sae must be at least 1, but is {value}"):
        regularizer(value)


@pytest.mark.parametrize("name", ["k_aux", "dead_after"])
@pytest.mark.parametrize("value", [0, -1])
def test_bad_auxk_arguments(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, but is {value}"):
        AuxK(D_SAE, **{name: value})


def test_defaults_of_auxk_are_those_of_the_paper() -> None:
    assert AuxK(D_SAE).init_args == {"d_sae": D_SAE, "k_aux": None, "dead_after": 20}


@pytest.mark.parametrize("regularizer", ALL)
def test_regularizers_have_no_parameters(regularizer: type[Regularizer]) -> None:
    assert not list(regularizer(D_SAE).parameters())
