"""The sparse backend gives what the formulas give: values, gradients, and on which batches it is taken."""

import copy
import pickle

import numpy as np
import pytest
import torch

from sae_lightning.backends import Dense, choose
from sae_lightning.backends.sparse import Sparse, SparseOutput, backend, support
from sae_lightning.nn import (
    Affine,
    Decoder,
    Encoder,
    KSparse,
    Orthant,
    Projection,
    SparseAutoencoder,
    search,
)
from tests.helpers.backends import Elsewhere, assert_same_as_formulas, training_loss
from tests.helpers.saes import ARCHITECTURES, D_IN, Options, all_options, build, raw_inputs
from tests.helpers.tensors import randn

pytestmark = pytest.mark.usefixtures("narrow")


# -- the sparse way -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", all_options(), ids=str)
def test_sparse_is_dense(options: Options) -> None:
    sae, regularizer = build(options)
    sae.batches_silent[::2] = 10  # some latents are dead, for TopK's aux-k
    for chunk_size in (None, 1, 7):
        assert_same_as_formulas(sae, regularizer, raw_inputs(16, options), chunk_size)


@pytest.mark.parametrize("chunk_size", [None, 1, 7])
@pytest.mark.parametrize("n", [1, 2, 40])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sparse_is_dense_for_any_batch(architecture: str, n: int, chunk_size: int | None) -> None:
    options = Options(architecture, subtract_decoder_bias=architecture != "spade", unit_norm=True)
    for seed in range(4):
        sae, regularizer = build(options, seed=seed)
        sae.batches_silent[seed:] = 10
        assert_same_as_formulas(sae, regularizer, raw_inputs(n, options, seed=seed), chunk_size)
        assert_same_as_formulas(sae, None, raw_inputs(n, options, seed=seed), chunk_size)


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("architecture", ["relu", "jumprelu", "topk"])
def test_sparse_is_dense_without_codes(architecture: str, chunk_size: int | None) -> None:
    options = Options(architecture, subtract_decoder_bias=True, unit_norm=True)
    sae, regularizer = build(options)
    x = raw_inputs(16, options)
    pre_codes = sae(x).pre_codes.detach()
    for empty in (slice(0, 5), slice(3, 4), slice(11, 16), slice(0, 16)):
        with torch.no_grad():
            sae.encoder.bias -= pre_codes[empty].amax(0).clamp_min(0) + 1  # these samples have no code
        found = Sparse(sae, None, chunk_size).autoencode_sparsely(sae.standardize(x)).codes
        assert (found.pattern.offsets.diff()[empty] == 0).all() or architecture == "jumprelu"
        assert (found.dense()[empty] == 0).all()
        assert_same_as_formulas(sae, regularizer, x, chunk_size)
        sae.batches_silent.fill_(10)
        assert_same_as_formulas(sae, regularizer, x, chunk_size)
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
    sparse = Sparse(sae, None, chunk_size=5)
    x = sae.standardize(raw_inputs(16, options))
    here = sparse.autoencode_sparsely(x)
    with Elsewhere():
        monkeypatch.setattr(support, "np", None)
        monkeypatch.setattr(search, "np", None)
        there = sparse.autoencode_sparsely(x)
        among = sparse.codes_among(x, torch.tensor([1, 4, 7]), 2)
    monkeypatch.undo()
    assert torch.equal(there.codes.pattern.positions, here.codes.pattern.positions)
    assert torch.equal(there.x_hat, here.x_hat)
    assert torch.equal(among.dense(), sparse.codes_among(x, torch.tensor([1, 4, 7]), 2).dense())


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
        found = Sparse(sae, None, chunk_size).codes_among(x, latents, k)
        torch.testing.assert_close(found.dense(), expected, rtol=1e-12, atol=1e-12)


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
    if half == "weights":
        sae = sae.to(dtype)
        loss = training_loss(sae, regularizer, 0.1, x.to(dtype), sparsely, chunk_size)
    else:
        with torch.autocast("cpu", dtype=dtype):
            loss = training_loss(sae, regularizer, 0.1, x, sparsely, chunk_size)
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
    row = (
        Sparse(sae, None).autoencode_sparsely(sae.standardize(x)).codes.pattern.latents[0]
        if where == "decoder.weight"
        else 1
    )
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


def takes_sparse(sparse: Sparse, x: torch.Tensor) -> bool:
    """Whether a training batch is given sparse codes; either way they are those of `autoencode`."""
    out, expected = sparse.forward_train(x), sparse.core.autoencode(x)
    codes = out.codes.dense() if isinstance(out, SparseOutput) else out.codes
    assert torch.equal(codes, expected.codes)
    torch.testing.assert_close(out.x_hat, expected.x_hat)
    return isinstance(out, SparseOutput)


def with_density(share: float, **options: int | None) -> tuple[Sparse, torch.Tensor]:
    """A ReLU SAE with 100 latents, of which a share fires for every sample, and inputs."""
    sae = SparseAutoencoder(Affine(4, 100), Orthant(100), Decoder(4, 100), standardize=False)
    with torch.no_grad():
        sae.encoder.bias.copy_(torch.where(torch.arange(100) < 100 * share, 1.0, -1.0))
    return Sparse(sae, None, **options), randn(64, 4, dtype=torch.float32)


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
    sae = SparseAutoencoder(Affine(4, 100), KSparse(100, k), Decoder(4, 100))
    assert takes_sparse(Sparse(sae, None, dense_above=dense_above), randn(64, 4, dtype=torch.float32)) is pays


def test_chunks_are_always_sparse() -> None:
    sae, x = with_density(1.0, chunk_size=8)
    assert takes_sparse(sae, x)
    assert takes_sparse(sae, x[:1])


def test_little_work_is_dense() -> None:
    sae, x = with_density(0.01)
    assert not takes_sparse(sae, x)
    few = backend._LEAST_WORK // (4 * 100)
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
    sae.core.count_silence(torch.ones(100, dtype=torch.bool))
    torch.randn(3)
    twin, _ = with_density(0.9)
    twin.core.load_state_dict(sae.core.state_dict())
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


@pytest.mark.parametrize(("encoder", "projection"), [(OwnEncoder, Orthant), (Affine, OwnProjection)])
def test_parts_without_a_rule_are_dense(encoder: type[Encoder], projection: type[Projection]) -> None:
    sae = SparseAutoencoder(encoder(4, 100), projection(100), Decoder(4, 100))
    assert type(choose("auto", sae, None, "cpu")) is Dense
    named = encoder.__name__ if encoder is OwnEncoder else projection.__name__
    message = f"chunk_size must be None where the sparse backend has no rule, as for {named}"
    with pytest.raises(ValueError, match=message):
        choose("auto", sae, None, "cpu", chunk_size=8)
    with pytest.raises(ValueError, match=f"backend = sparse has no rule for {named}: take auto or dense"):
        choose("sparse", sae, None, "cpu")


class Squashed(Affine):
    """Somebody's change of a part that has a rule, which the change has not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x).tanh()


class Halved(Orthant):
    """Likewise."""

    def forward(self, pre_codes: torch.Tensor) -> torch.Tensor:
        return super().forward(pre_codes) / 2


class SquaredDecoder(Decoder):
    """Likewise."""

    def combine(self, codes: torch.Tensor, latents: torch.Tensor | None = None) -> torch.Tensor:
        return super().combine(codes.square(), latents)


@pytest.mark.parametrize("changed", [Squashed, Halved, SquaredDecoder])
def test_a_changed_part_is_not_run_by_its_parents_rule(changed: type[torch.nn.Module]) -> None:
    sizes = {"d_in": 4, "d_sae": 100}
    encoder = Squashed(**sizes) if changed is Squashed else Affine(**sizes)
    projection = Halved(100) if changed is Halved else Orthant(100)
    decoder = SquaredDecoder(4, 100) if changed is SquaredDecoder else Decoder(4, 100)
    sae = SparseAutoencoder(encoder, projection, decoder, standardize=False, subtract_decoder_bias=True)
    with torch.no_grad():
        sae.encoder.weight.copy_(randn(100, 4))
        sae.decoder.bias.copy_(randn(4, seed=2))
    running = choose("auto", sae, None, "cpu")
    assert type(running) is Dense
    x = randn(6, 4, dtype=torch.float32)
    for actual, expected in zip(running.forward_train(x), sae.autoencode(x), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.usefixtures("any_work")
@pytest.mark.parametrize("part", ["encoder", "projection"])
def test_hooks_of_a_part_are_called(part: str) -> None:
    # a hook may replace what the part takes or returns, and with the old pruning of torch it makes the weight itself
    sae, x = with_density(0.05)
    getattr(sae.core, part).register_forward_hook(lambda module, inputs, output: output)
    assert not takes_sparse(sae, x)


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
        sparse = Sparse(sae, regularizer, chunk_size)
        x = sae.standardize(raw_inputs(16, options)[:0])
        out = sparse.autoencode_sparsely(x)
        assert out.x_hat.shape == (0, D_IN)
        assert sparse.regularize(x, out).shape == (0,)
        assert not sparse.fired(out).any()
        assert sparse.count_firing(out) == 0
