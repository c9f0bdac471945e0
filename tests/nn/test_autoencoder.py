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
    Encoder,
    Jump,
    KSparse,
    Orthant,
    Projection,
    SAEOutput,
    Simplex,
    SparseAutoencoder,
    SparseOutput,
    SquaredDistance,
    autoencoder,
    support,
)

from .helpers import (
    ARCHITECTURES,
    BANDWIDTH,
    D_IN,
    D_SAE,
    LEADING_SHAPES,
    Options,
    all_options,
    assert_same_as_reference,
    assert_sparse_is_dense,
    build,
    randn,
    raw_inputs,
    training_loss,
)
from .test_support import Elsewhere

ROUNDING = 2.0**-8  # unit roundoff of bfloat16: half the distance between 1 and the next number


def relu_sae(d_in: int = 4, d_sae: int = 6, **options: Any) -> SparseAutoencoder:
    return SparseAutoencoder(Affine(d_in, d_sae), Orthant(d_sae), Decoder(d_in, d_sae), **options)


def k_sparse(d_sae: int) -> KSparse:
    return KSparse(d_sae, 2)


# -- values and gradients -------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, params=[16, 0], ids=["narrow", "wide"])
def narrow(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run everything through both ways of taking the products; whether it is the one for small d_in."""
    monkeypatch.setattr("sae_lightning.nn.functional._NARROW", request.param)
    return bool(request.param)


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


# -- the sparse way -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", all_options(), ids=str)
def test_sparse_is_dense(options: Options) -> None:
    sae, regularizer = build(options)
    sae.batches_silent[::2] = 10  # some latents are dead, for TopK's aux-k
    for chunk_size in (None, 1, 7):
        sae.chunk_size = chunk_size
        assert_sparse_is_dense(sae, regularizer, raw_inputs(16, options))


@pytest.mark.parametrize("chunk_size", [None, 1, 7])
@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_is_dense_for_any_batch(architecture: str, n: int, chunk_size: int | None) -> None:
    options = Options(architecture, subtract_decoder_bias=architecture != "spade", unit_norm=True)
    for seed in range(4):
        sae, regularizer = build(options, seed=seed)
        sae.batches_silent[seed:] = 10
        sae.chunk_size = chunk_size
        assert_sparse_is_dense(sae, regularizer, raw_inputs(n, options, seed=seed))
        assert_sparse_is_dense(sae, None, raw_inputs(n, options, seed=seed))


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "topk"])
def test_sparse_is_dense_without_codes(architecture: str, chunk_size: int | None) -> None:
    options = Options(architecture, subtract_decoder_bias=True, unit_norm=True)
    sae, regularizer = build(options)
    x = raw_inputs(16, options)
    pre_codes = sae(x).pre_codes.detach()
    sae.chunk_size = chunk_size
    for empty in (slice(0, 5), slice(3, 4), slice(11, 16), slice(0, 16)):
        with torch.no_grad():
            sae.encoder.bias -= pre_codes[empty].amax(0).clamp_min(0) + 1  # these samples have no code
        found = sae.autoencode_sparsely(sae.standardize(x)).codes
        assert (found.pattern.offsets.diff()[empty] == 0).all() or architecture == "jumprelu"
        assert (found.dense()[empty] == 0).all()
        assert_sparse_is_dense(sae, regularizer, x)
        sae.batches_silent.fill_(10)
        assert_sparse_is_dense(sae, regularizer, x)
        with torch.no_grad():
            sae.encoder.bias += pre_codes[empty].amax(0).clamp_min(0) + 1


def test_no_code_at_all_still_reaches_every_parameter() -> None:
    # a parameter without a gradient would abort DDP
    sae, regularizer = build(Options("relu", subtract_decoder_bias=True))
    with torch.no_grad():
        sae.encoder.bias.fill_(-1e3)
    training_loss(sae, regularizer, 0.1, raw_inputs(16, Options("relu")), sparsely=True).backward()
    assert all(parameter.grad is not None for parameter in sae.parameters())
    assert (sae.encoder.weight.grad == 0).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_on_another_device(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = Options(architecture)
    sae, _ = build(options)
    sae.chunk_size = 5
    x = sae.standardize(raw_inputs(16, options))
    here = sae.autoencode_sparsely(x)
    with Elsewhere():
        monkeypatch.setattr(support, "np", None)
        there = sae.autoencode_sparsely(x)
        among = sae.codes_among(x, torch.tensor([1, 4, 7]), 2)
    monkeypatch.undo()
    assert torch.equal(there.codes.pattern.positions, here.codes.pattern.positions)
    assert torch.equal(there.x_hat, here.x_hat)
    assert torch.equal(among.dense(), sae.codes_among(x, torch.tensor([1, 4, 7]), 2).dense())


@pytest.mark.parametrize("k", [1, 2, 4])
def test_codes_among(k: int) -> None:
    options = Options("relu", subtract_decoder_bias=True)
    sae, _ = build(options)
    x = sae.standardize(raw_inputs(16, options))
    latents = torch.tensor([0, 3, 4, 8])
    pre_codes = sae.autoencode(x).pre_codes
    mask = torch.full_like(pre_codes, -torch.inf).index_fill(1, latents, 0.0)
    expected = torch.zeros_like(pre_codes)
    values, chosen = (pre_codes + mask).topk(k, dim=1)
    expected = expected.scatter(1, chosen, values.relu())
    for chunk_size in (None, 1, 5):
        sae.chunk_size = chunk_size
        torch.testing.assert_close(sae.codes_among(x, latents, k).dense(), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_inputs_of_another_precision(architecture: str, dtype: torch.dtype) -> None:
    options = Options(architecture)
    sae, regularizer = build(options, torch.float32)
    sae.batches_silent[::2] = 10
    x = raw_inputs(16, options).to(dtype)
    losses = [training_loss(sae, regularizer, 0.1, x, sparsely) for sparsely in (True, False)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    gradients = [torch.autograd.grad(loss, list(sae.parameters())) for loss in losses]
    for actual, expected in zip(*gradients, strict=True):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.float() - expected.float()).norm() / expected.float().norm()).item()


@pytest.mark.parametrize("sparsely", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("chunk_size", [None, 5])
@pytest.mark.parametrize("half", ["weights", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_half_precision_is_close_to_float32(
    architecture: str, dtype: torch.dtype, half: str, chunk_size: int | None, sparsely: bool
) -> None:
    rounding = torch.finfo(dtype).eps / 2
    options = Options(architecture, unit_norm=True, standardize=False)
    sae, regularizer = build(options, torch.float32)
    sae.batches_silent[::2] = 10
    x = raw_inputs(64, options).to(dtype).float()
    with torch.no_grad():  # both start from what half precision can hold
        for parameter in sae.parameters():
            parameter.copy_(parameter.to(dtype))
    exact = training_loss(sae, regularizer, 0.1, x)
    wanted = torch.autograd.grad(exact, list(sae.parameters()))
    sae.chunk_size = chunk_size
    if half == "weights":
        sae = sae.to(dtype)
        loss = training_loss(sae, regularizer, 0.1, x.to(dtype), sparsely)
    else:
        with torch.autocast("cpu", dtype=dtype):
            loss = training_loss(sae, regularizer, 0.1, x, sparsely)
    loss.backward()
    assert relative_error(loss.detach(), exact.detach()) < 8 * rounding
    for (name, parameter), expected in zip(sae.named_parameters(), wanted, strict=True):
        assert parameter.grad.dtype == parameter.dtype
        assert parameter.dtype == (dtype if half == "weights" and parameter.ndim == 2 else torch.float32)
        if name != "projection.log_threshold":  # straight-through: pre-codes cross the edges of the kernel
            # a code that comes or goes changes a gradient by its share, one of some dozens
            assert relative_error(parameter.grad, expected) < 0.1, name


@pytest.mark.parametrize("where", ["inputs", "encoder.weight", "encoder.bias", "decoder.weight", "decoder.bias"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nan_shows_in_the_sparse_loss(architecture: str, where: str) -> None:
    options = Options(architecture)
    sae, regularizer = build(options)
    x = raw_inputs(16, options)
    tensors = {"inputs": x, **dict(sae.named_parameters())}
    if where not in tensors:
        pytest.skip("the distance encoder has no bias")
    # a decoder's row counts where its latent has a code
    row = sae.autoencode_sparsely(sae.standardize(x)).codes.pattern.latents[0] if where == "decoder.weight" else 1
    with torch.no_grad():
        tensors[where][row] = torch.nan
        assert training_loss(sae, regularizer, 0.1, x, sparsely=True).isnan()
        assert training_loss(sae, regularizer, 0.1, x).isnan()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("value", [1e200, -1e200])
def test_overflow_shows_in_the_sparse_loss(architecture: str, value: float) -> None:
    options = Options(architecture, standardize=False)
    sae, regularizer = build(options)
    x = raw_inputs(16, options)
    for row in (0, 7, 15):
        broken = x.clone()
        broken[row] = value
        assert not training_loss(sae, regularizer, 0.1, broken, sparsely=True).isfinite()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_after_a_copy(architecture: str) -> None:
    options = Options(architecture)
    sae, regularizer = build(options)
    x = raw_inputs(16, options)
    loss = training_loss(sae, regularizer, 0.1, x, sparsely=True)
    loss.backward()
    for clone in (copy.deepcopy, lambda sae: pickle.loads(pickle.dumps(sae))):  # nothing of the step is left in it
        assert torch.equal(training_loss(clone(sae), regularizer, 0.1, x, sparsely=True), loss)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_gradients_accumulate(architecture: str) -> None:
    options = Options(architecture)
    sae, regularizer = build(options)
    x = raw_inputs(16, options)
    loss = training_loss(sae, regularizer, 0.1, x, sparsely=True)
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in sae.parameters()]
    loss.backward()
    training_loss(sae, regularizer, 0.1, x, sparsely=True).backward()
    for parameter, gradient in zip(sae.parameters(), once, strict=True):
        torch.testing.assert_close(parameter.grad, 3 * gradient, rtol=1e-12, atol=1e-12)


# -- which way ------------------------------------------------------------------------------------------------------


@pytest.fixture
def any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches are worth the sparse way, too."""
    monkeypatch.setattr(autoencoder, "_LEAST_WORK", 0)


def takes_sparse(sae: SparseAutoencoder, x: torch.Tensor) -> bool:
    """Whether a training batch is given sparse codes; either way they are those of `autoencode`."""
    out, expected = sae.autoencode_cheaply(x), sae.autoencode(x)
    sparse = isinstance(out, SparseOutput)
    codes = out.codes.dense() if isinstance(out, SparseOutput) else out.codes
    assert torch.equal(codes, expected.codes)
    torch.testing.assert_close(out.x_hat, expected.x_hat)
    return sparse


def with_density(share: float, **options: int | None) -> tuple[SparseAutoencoder, torch.Tensor]:
    """A ReLU SAE with 100 latents, of which a share fires for every sample, and inputs."""
    sae = SparseAutoencoder(Affine(4, 100), Orthant(100), Decoder(4, 100), standardize=False, **options)
    with torch.no_grad():
        sae.encoder.bias.copy_(torch.where(torch.arange(100) < 100 * share, 1.0, -1.0))
    return sae, randn(64, 4, dtype=torch.float32)


@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize(
    ("share", "dense_above", "pays"),
    [
        (0.11, None, True),
        (0.12, None, True),
        (0.13, None, False),
        (0.0, None, True),
        (0.0, 1, True),
        (0.01, 1, True),
        (0.02, 1, False),
        (0.5, 50, True),
        (0.51, 50, False),
        (1.0, 100, True),
    ],
)
def test_the_density_decides(share: float, dense_above: int | None, pays: bool) -> None:
    sae, x = with_density(share, dense_above=dense_above)
    assert takes_sparse(sae, x) is pays
    assert takes_sparse(sae, x) is pays
    assert takes_sparse(sae, x[:1]) is pays
    assert takes_sparse(sae, x.requires_grad_()) is pays


@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize(
    ("k", "dense_above", "pays"), [(12, None, True), (13, None, False), (5, 5, True), (6, 5, False)]
)
def test_the_density_is_known_for_k_sparse_codes(k: int, dense_above: int | None, pays: bool) -> None:
    sae = SparseAutoencoder(Affine(4, 100), KSparse(100, k), Decoder(4, 100), dense_above=dense_above)
    assert takes_sparse(sae, randn(64, 4, dtype=torch.float32)) is pays


def test_chunks_are_always_sparse() -> None:
    sae, x = with_density(1.0, chunk_size=8)
    assert takes_sparse(sae, x)
    assert takes_sparse(sae, x[:1])


def test_little_work_is_dense() -> None:
    sae, x = with_density(0.01)
    assert not takes_sparse(sae, x)
    few = autoencoder._LEAST_WORK // (4 * 100)
    assert not takes_sparse(sae, x[:1].expand(few, 4))
    assert takes_sparse(sae, x[:1].expand(few + 1, 4))


@pytest.mark.usefixtures("any_work")
def test_other_devices_are_dense() -> None:
    sae, x = with_density(0.01)
    assert takes_sparse(sae, x)
    with Elsewhere():
        assert not sae._may_be_sparse(x)
    assert not sae._may_be_sparse(x.to("meta"))


@pytest.mark.usefixtures("any_work")
def test_the_way_depends_on_the_batch_alone() -> None:
    sae, x = with_density(0.05)
    sparse, full = x - 0.5, torch.cat([x, x]) * 100
    answers = [takes_sparse(sae, batch) for batch in (sparse, full)]
    sae.count_silence(torch.ones(100, dtype=torch.bool))
    torch.randn(3)
    twin, _ = with_density(0.9)
    twin.load_state_dict(sae.state_dict())
    assert [takes_sparse(twin, batch) for batch in (sparse, full)] == answers
    assert [takes_sparse(sae, batch) for batch in (full, sparse)] == answers[::-1]


class OwnEncoder(Encoder):
    """Somebody's encoder, which knows nothing of sparse codes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ self.weight.T).tanh()


class OwnProjection(Projection):
    """Somebody's projection, which knows nothing of sparse codes."""

    def forward(self, pre_codes: torch.Tensor) -> torch.Tensor:
        return (pre_codes - 0.5).relu()


@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize(("encoder", "projection"), [(OwnEncoder, Orthant), (Affine, OwnProjection)])
def test_parts_without_a_sparse_form_are_dense(encoder: type[Encoder], projection: type[Projection]) -> None:
    sae = SparseAutoencoder(encoder(4, 100), projection(100), Decoder(4, 100), dense_above=100)
    assert not takes_sparse(sae, randn(64, 4, dtype=torch.float32))
    named = encoder.__name__ if encoder is OwnEncoder else projection.__name__
    with pytest.raises(
        ValueError, match=f"chunk_size must be None where a part has no sparse form, as {named} has not"
    ):
        SparseAutoencoder(encoder(4, 100), projection(100), Decoder(4, 100), chunk_size=8)
    if projection is OwnProjection:
        with pytest.raises(NotImplementedError, match="OwnProjection has no sparse form"):
            sae.autoencode_sparsely(randn(8, 4, dtype=torch.float32))


class Squashed(Affine):
    """Somebody's change of a part that has a sparse form, which the change has not."""

    def forward(self, x: torch.Tensor, centre: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x, centre).tanh()


class Halved(Orthant):
    """Likewise."""

    def forward(self, pre_codes: torch.Tensor) -> torch.Tensor:
        return super().forward(pre_codes) / 2


class SquaredDecoder(Decoder):
    """Likewise."""

    def combine(self, codes: torch.Tensor, latents: torch.Tensor | None = None) -> torch.Tensor:
        return super().combine(codes.square(), latents)


@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize("changed", [Squashed, Halved, SquaredDecoder])
def test_a_changed_part_is_dense_unless_it_says_otherwise(changed: type[torch.nn.Module]) -> None:
    sizes = {"d_in": 4, "d_sae": 100}
    encoder = Squashed(**sizes) if changed is Squashed else Affine(**sizes)
    projection = Halved(100) if changed is Halved else Orthant(100)
    decoder = SquaredDecoder(**sizes) if changed is SquaredDecoder else Decoder(**sizes)
    sae = SparseAutoencoder(encoder, projection, decoder, dense_above=100)
    assert not takes_sparse(sae, randn(64, 4, dtype=torch.float32))


def test_a_changed_encoder_is_asked_for_dead_latents() -> None:
    sae = SparseAutoencoder(Squashed(4, 9, bias=False), Orthant(9), Decoder(4, 9), standardize=False)
    with torch.no_grad():
        sae.encoder.weight.copy_(randn(9, 4))
    x, latents = randn(6, 4, dtype=torch.float32), torch.tensor([1, 5])
    torch.testing.assert_close(sae.pre_codes_among(x, latents), sae.pre_codes(x)[:, latents])


@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize("part", ["encoder", "projection"])
def test_hooks_of_a_part_are_called(part: str) -> None:
    # a hook may replace what the part takes or returns, and with the old pruning of torch it makes the weight itself
    sae, x = with_density(0.05)
    getattr(sae, part).register_forward_hook(lambda module, inputs, output: output)
    assert not takes_sparse(sae, x)


@pytest.mark.parametrize("name", ["chunk_size", "dense_above"])
@pytest.mark.parametrize("value", [0, -1])
def test_bad_sizes_of_the_sparse_way(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, but is {value}"):
        relu_sae(**{name: value})


@pytest.mark.parametrize("chunk_size", [np.int64(3), 3])
def test_chunk_size_may_be_a_number_of_numpy(chunk_size: int) -> None:
    sae, x = with_density(0.1, chunk_size=chunk_size)
    assert sae.autoencode_sparsely(x).x_hat.shape == x.shape


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_of_an_empty_batch(architecture: str) -> None:
    options = Options(architecture)
    sae, regularizer = build(options)
    sae.batches_silent.fill_(10)
    for chunk_size in (None, 4):
        sae.chunk_size = chunk_size
        x = sae.standardize(raw_inputs(16, options)[:0])
        out = sae.autoencode_sparsely(x)
        assert out.x_hat.shape == (0, D_IN)
        assert regularizer(sae, x, out).shape == (0,)
        assert not sae.fired(out.codes).any()


def test_sparse_regularizer_of_a_dense_output() -> None:
    sae, x = with_density(0.1)
    torch.testing.assert_close(L1(100)(sae, x, sae.autoencode(x)), L1(100)(sae, x, sae.autoencode_sparsely(x)))


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
    assert_sparse_is_dense(sae, regularizer, x)


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
