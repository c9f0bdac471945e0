"""Seams for other SAEs: targets, layers, a projection's form for training, and schedules of coefficients.

(Signed codes have test_signed_codes.py; terms of the loss that read the dictionary only, test_backends.py.)
"""

from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor

from sae_lightning import load_sae
from sae_lightning.callbacks import ResampleDeadLatents
from sae_lightning.data.batch import ActivationBatch
from sae_lightning.modules import BaseSAE, Comparison, ComposedSAE, ReLUSAE, SpaDE, TopKSAE, Transcoder
from sae_lightning.nn import L1, Affine, AuxK, Decoder, Orthant, Projection, SquaredDistance, Standardizer
from tests.helpers.data import Batches
from tests.helpers.modules import make
from tests.helpers.trainers import fit as train
from tests.helpers.trainers import make_trainer

D_IN, D_OUT, N_LAYERS = 6, 4, 3


def fit(module: pl.LightningModule, batches: Batches, steps: int, ckpt_path: Any = None, **options: Any) -> pl.Trainer:
    trainer = make_trainer(steps, **options)
    trainer.fit(module, batches, Batches([]), ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return trainer


def pairs(n: int = 640, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs of four directions, and targets that a ReLU transcoder can compute exactly."""
    generator = torch.Generator().manual_seed(seed)
    strengths = torch.rand(n, 4, generator=generator) * (torch.rand(n, 4, generator=generator) < 0.4)
    inputs = strengths @ torch.eye(4, D_IN) * 3 + 5
    targets = 100 * strengths @ torch.randn(4, D_OUT, generator=torch.Generator().manual_seed(9)) - 7
    return inputs, targets


def pair_batches(n: int = 640, size: int = 64) -> Batches:
    x, y = pairs(n)
    labels = torch.full((size,), -1)
    return Batches([ActivationBatch(a, labels, target=b) for a, b in zip(x.split(size), y.split(size), strict=True)])


# ---------------------------------------------------------------------- targets


def test_a_transcoder_is_its_formula() -> None:
    torch.manual_seed(0)
    x, y = pairs()
    sae = Transcoder(D_IN, 9, D_OUT, gamma=0.3).double()
    sae.initialize(x.double(), y.double())
    torch.nn.init.normal_(sae.sae.encoder.bias)
    torch.nn.init.normal_(sae.sae.decoder.bias)
    x, y = x[:50].double(), y[:50].double()
    loss = sae.learn(x, y).terms["loss"]
    loss.backward()

    full_x, full_y = (values.double() for values in pairs())
    parameters = {name: p.detach().clone().requires_grad_() for name, p in sae.sae.named_parameters()}
    scale_x = ((full_x - full_x.mean(0)).square().sum(-1).mean() / D_IN).sqrt()
    scale_y = ((full_y - full_y.mean(0)).square().sum(-1).mean() / D_OUT).sqrt()
    v = (x - full_x.mean(0)) / scale_x @ parameters["encoder.weight"].T + parameters["encoder.bias"]
    atoms = parameters["decoder.weight"]
    atoms = atoms / (atoms.norm(dim=-1, keepdim=True) + 1e-6)
    y_hat = v.relu() @ atoms + parameters["decoder.bias"]
    expected = ((y - full_y.mean(0)) / scale_y - y_hat).square().sum(-1).mean() + 0.3 * v.relu().sum(-1).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for name, parameter in sae.sae.named_parameters():
        torch.testing.assert_close(parameter.grad, parameters[name].grad, rtol=1e-5, atol=1e-7, msg=name)
    torch.testing.assert_close(sae(x).x_hat, y_hat.detach() * scale_y + full_y.mean(0), rtol=1e-5, atol=1e-4)


def test_a_transcoder_learns_another_space_and_its_raw_weights_reproduce_it() -> None:
    torch.manual_seed(0)
    sae = Transcoder(D_IN, 16, D_OUT, gamma=1e-3, optimizer=partial(torch.optim.Adam, lr=1e-2))
    fit(sae, pair_batches(), 1000)
    x, y = pairs(200, seed=1)
    y_hat = sae(x).x_hat.detach()
    assert float((y_hat - y).square().sum() / (y - y.mean(0)).square().sum()) < 0.02
    codes = (x @ sae.W_enc + sae.b_enc).relu()
    torch.testing.assert_close(codes @ sae.W_dec + sae.b_dec, y_hat, rtol=1e-3, atol=1e-2)
    assert sae.W_dec.shape == (16, D_OUT)
    assert sae.W_enc.shape == (D_IN, 16)


@pytest.mark.parametrize("processes", [1, 2])
def test_members_with_targets_and_without_share_batches(processes: int) -> None:
    make_member = {"relu": partial(ReLUSAE, d_sae=9), "transcoder": partial(Transcoder, d_sae=9, d_out=D_OUT)}
    torch.manual_seed(0)
    together = Comparison(D_IN, make_member, processes=processes)
    fit(together, pair_batches(), 12)
    for name, sae in together.saes().items():
        torch.manual_seed(0)
        alone = make_member[name](D_IN)
        fit(alone, pair_batches(), 12)
        for key, value in alone.state_dict().items():
            assert torch.equal(sae.state_dict()[key], value), f"{name}: {key}"


def test_dead_latents_of_a_transcoder_are_resampled_to_explain_its_targets() -> None:
    torch.manual_seed(0)
    sae = Transcoder(D_IN, 8, D_OUT, gamma=1e-3)
    x, y = pairs()
    sae.initialize(x, y)
    torch.nn.init.constant_(sae.sae.encoder.bias, -100.0)
    sae.sae.batches_silent.fill_(50)
    before = sae.evaluate(x, y).terms["mse"]
    assert int(sae.evaluate(x, y).l0()) == 0
    resampling = ResampleDeadLatents(dead_after=20)
    resampling.resample(sae, x, 1, torch.optim.Adam(sae.parameters()), y)
    after = sae.evaluate(x, y)
    assert float(after.l0()) > 0
    assert float(after.terms["mse"]) < float(before)


def test_a_transcoder_says_what_its_data_lack() -> None:
    with pytest.raises(
        ValueError, match="d_out must be the size of the targets, but is None: the data have no `d_out`"
    ):
        Transcoder(D_IN, 9)
    x, y = pairs()
    sae = Transcoder(D_IN, 9, D_OUT)
    with pytest.raises(ValueError, match=r"a batch's target must have shape \(640, 4\), but there is none"):
        sae.learn(x)
    with pytest.raises(ValueError, match=r"a batch's target must have shape \(640, 4\), but has shape \(640, 3\)"):
        sae.learn(x, y[:, :3])
    some = [ActivationBatch(x[:64], torch.full((64,), -1), target=y[:64]), (x[64:128],)]
    with pytest.raises(ValueError, match="all training batches must hold targets, or none, but 1 of 2 do"):
        fit(Transcoder(D_IN, 9, D_OUT), Batches(some), 2)
    bad = y[:64].clone()
    bad[5, 2] = torch.nan
    with pytest.raises(ValueError, match=r"targets must be finite, but .* holds nan at row 5, feature 2"):
        fit(Transcoder(D_IN, 9, D_OUT), Batches([ActivationBatch(x[:64], torch.full((64,), -1), target=bad)]), 2)


class Residual(BaseSAE):
    """Aux-k, which looks at the residual of inputs, with targets."""

    def __init__(self, d_in: int, d_sae: int, d_out: int) -> None:
        super().__init__(
            Affine(d_in, d_sae), Orthant(d_sae), Decoder(d_out, d_sae), AuxK(d_sae), gamma=0.1, targets=True
        )


def test_aux_k_refuses_targets() -> None:
    with pytest.raises(ValueError, match="AuxK explains the residual of inputs"):
        Residual(D_IN, 9, D_OUT)


def test_initial_atoms_are_directions_of_targets() -> None:
    x, y = pairs()
    sae = Transcoder(D_IN, 9, D_OUT, init="data")
    sae.initialize(x, y)
    targets = sae.sae.standardize_pair(x, y)[1]
    targets = targets / targets.norm(dim=-1, keepdim=True)
    nearest = (sae.sae.decoder.weight @ targets.T).amax(-1)
    torch.testing.assert_close(nearest, torch.ones(9))


def test_errors_are_relative_to_the_targets() -> None:
    x, y = pairs()
    sae = Transcoder(D_IN, 9, D_OUT)
    sae.initialize(x, y)
    torch.nn.init.zeros_(sae.sae.encoder.weight)  # reconstructs nothing
    sae._errors = {"": sae.evaluate(x, y).terms["mse"]}
    found = sae.relative_errors(ActivationBatch(x, torch.full((len(x),), -1), target=y))
    assert float(found[""]) == pytest.approx(1, rel=1e-3)


def test_saes_of_inputs_look_at_no_targets() -> None:
    x, y = pairs()
    bad = y[:64].clone()
    bad[3] = torch.nan
    labels = torch.full((64,), -1)
    batches = [ActivationBatch(x[:64], labels, target=bad), ActivationBatch(x[64:128], labels)]
    fit(ReLUSAE(D_IN, 9), Batches(batches), 2)


def test_targets_cannot_have_layers_or_a_subtracted_bias() -> None:
    for changes in ({"input_layers": 2}, {"subtract_decoder_bias": True}):
        with pytest.raises(ValueError, match="targets cannot be combined with subtract_decoder_bias or input_layers"):
            BaseSAE(Affine(6, 9), Orthant(9), Decoder(4, 9), None, 0.0, targets=True, **changes)


# ---------------------------------------------------------------------- layers


class Crosscoder(BaseSAE):
    """Codes that several layers share (Lindsey et al., 2024)."""

    def __init__(self, d_in: int, d_sae: int, input_layers: int, gamma: float = 1e-2, **shared: Any) -> None:
        super().__init__(
            encoder=Affine(input_layers * d_in, d_sae),
            projection=Orthant(d_sae),
            decoder=Decoder(input_layers * d_in, d_sae),
            regularizer=L1(d_sae),
            gamma=gamma,
            input_layers=input_layers,
            **shared,
        )


def layers(n: int = 640) -> Tensor:
    """Inputs whose layers have very different scales, `(n, N_LAYERS, D_IN)`."""
    x = torch.randn(n, 1, D_IN, generator=torch.Generator().manual_seed(0))
    return x * torch.tensor([1.0, 10.0, 1000.0])[:, None] + torch.tensor([0.0, 50.0, -3.0])[:, None]


def test_layers_have_scales_of_their_own() -> None:
    x = layers()
    sae = Crosscoder(D_IN, 12, N_LAYERS)
    sae.initialize(x)
    standardized = sae.sae.standardize(x).unflatten(-1, (N_LAYERS, D_IN))
    torch.testing.assert_close(standardized.mean(0), torch.zeros(N_LAYERS, D_IN), rtol=0, atol=1e-4)
    torch.testing.assert_close(standardized.square().sum(-1).mean(0), torch.full((N_LAYERS,), float(D_IN)))
    expected = Standardizer(D_IN)
    expected.fit(x[:, 1])
    torch.testing.assert_close(standardized[:, 1], expected(x[:, 1]))


def test_layers_are_trained_on_saved_and_returned_in_their_shape(tmp_path: Any) -> None:
    torch.manual_seed(0)
    x = layers()
    sae = Crosscoder(D_IN, 24, N_LAYERS, gamma=1e-4, optimizer=partial(torch.optim.Adam, lr=3e-3))
    fitted = fit(sae, Batches(list(x.split(64))), 600)
    with torch.no_grad():
        out = sae(x)
    assert out.x_hat.shape == x.shape
    assert out.codes.shape == (640, 24)
    for layer in range(N_LAYERS):
        error = (out.x_hat - x)[:, layer].square().sum() / (x - x.mean(0))[:, layer].square().sum()
        assert float(error) < 0.1, layer
    torch.testing.assert_close(sae.decode(sae.encode(x)), out.x_hat)
    fitted.save_checkpoint(tmp_path / "layers.ckpt")
    torch.testing.assert_close(load_sae(tmp_path / "layers.ckpt")(x).x_hat, out.x_hat)
    raw = (x.flatten(1) @ sae.W_enc + sae.b_enc).relu() @ sae.W_dec + sae.b_dec
    layers_of = [sae.sae.standardize(values.unflatten(-1, x.shape[1:])) for values in (raw, out.x_hat.flatten(1))]
    torch.testing.assert_close(*layers_of, rtol=0, atol=1e-4)  # in units of each layer


def test_layers_that_are_not_standardized_keep_their_shape() -> None:
    x = layers(20)
    assert Crosscoder(D_IN, 12, N_LAYERS, standardize=False)(x).x_hat.shape == x.shape


def test_layers_of_another_number_are_refused() -> None:
    sae = Crosscoder(D_IN, 12, N_LAYERS)
    with pytest.raises(ValueError, match=r"inputs must have shape \(\.\.\., \(3, 6\)\), but have shape \(5, 2, 6\)"):
        sae.encode(torch.randn(5, 2, D_IN))
    with pytest.raises(ValueError, match=r"activations must have shape \(batch, 3, 6\), but have \(64, 6\)"):
        fit(sae, Batches([torch.randn(64, D_IN)]), 1)
    with pytest.raises(ValueError, match=r"activations must have shape \(batch, 6\), but have \(64, 3, 6\)"):
        fit(ReLUSAE(D_IN, 9), Batches([torch.randn(64, N_LAYERS, D_IN)]), 1)
    with pytest.raises(ValueError, match="input_layers must divide the encoder's d_in, 6, but is 4"):
        BaseSAE(Affine(6, 9), Orthant(9), Decoder(6, 9), None, 0.0, input_layers=4)


# ---------------------------------------------------------------------- a projection's form for training


class BatchTopK(Projection):
    """Keeps the largest codes of a batch, k per sample on average; then a threshold (Bussmann et al., 2024)."""

    cut: Tensor

    def __init__(self, d_sae: int, k: int = 3) -> None:
        super().__init__(d_sae)
        self.k = k
        self.register_buffer("cut", torch.zeros(()))

    def forward(self, pre_codes: Tensor) -> Tensor:
        return pre_codes * (pre_codes > self.cut)

    def forward_train(self, pre_codes: Tensor) -> Tensor:
        positive = pre_codes.relu()
        least = positive.flatten().topk(self.k * len(pre_codes)).values[-1]
        with torch.no_grad():
            self.cut.lerp_(least, 0.1)
        return positive * (positive >= least)


def test_training_may_look_at_the_batch_and_inference_never_does(tmp_path: Any) -> None:
    torch.manual_seed(0)
    sae = ComposedSAE(D_IN, 24, encoder=Affine, projection=partial(BatchTopK, k=3), regularizer=L1, gamma=1e-4)
    x = torch.randn(640, D_IN, generator=torch.Generator().manual_seed(0))
    fitted = fit(sae, Batches(list(x.split(64))), 100)
    assert sae.training
    learned = sae.learn(x[:64])
    assert float(learned.l0()) == 3  # of the whole batch, whatever its samples
    assert learned.out.codes.shape == (64, 24)
    assert len(set((learned.out.codes > 0).sum(-1).tolist())) > 1
    together = sae.encode(x)
    alone = torch.cat([sae.encode(x[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    assert not torch.equal(sae.encode(x[:64]) > 0, learned.out.codes > 0)
    fitted.save_checkpoint(tmp_path / "batch.ckpt")
    torch.testing.assert_close(load_sae(tmp_path / "batch.ckpt").encode(x), together)


class Assigning(BatchTopK):
    """A buffer that training replaces by another tensor."""

    def forward_train(self, pre_codes: Tensor) -> Tensor:
        codes = super().forward_train(pre_codes)
        self.cut = 0.9 * self.cut + 0.01
        return codes


@pytest.mark.parametrize("projection", [BatchTopK, Assigning])
def test_processes_side_by_side_keep_what_a_projection_learns(projection: type[BatchTopK]) -> None:
    x = torch.randn(640, D_IN, generator=torch.Generator().manual_seed(0))
    found = []
    for processes in (1, 2):
        torch.manual_seed(0)
        member = partial(ComposedSAE, d_sae=24, encoder=Affine, projection=projection, regularizer=L1)
        together = Comparison(D_IN, {"a": member, "b": member}, processes=processes)
        fit(together, Batches(list(x.split(64))), 15)
        found.append([float(sae.sae.projection.cut) for sae in together.saes().values()])
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert min(found[0]) > 0.01


# ---------------------------------------------------------------------- schedules of coefficients


class Gammas(pl.Callback):
    """Notes the weight of the regularizer in each step, from the terms of its loss."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        for sae in module.saes().values():
            learn = type(sae).learn

            def watched(*args: Any, _sae: Any = sae, _learn: Any = learn) -> Any:
                found = _learn(_sae, *args)
                terms = found.terms
                self.seen.append(float(((terms["loss"] - terms["mse"]) / terms["regularizer"]).detach()))
                return found

            sae.learn = watched


@pytest.mark.parametrize(
    ("warmup", "steps", "expected"),
    [(4, 6, [0, 0.25, 0.5, 0.75, 1, 1]), (0.5, 8, [0, 0.25, 0.5, 0.75, 1, 1, 1, 1]), (0, 2, [1, 1]), (1, 2, [0, 1])],
)
@pytest.mark.parametrize("make_sae", [partial(ReLUSAE, d_sae=9), partial(SpaDE, d_sae=9)])
def test_gamma_rises_linearly_from_zero(make_sae: Any, warmup: float, steps: int, expected: list[float]) -> None:
    torch.manual_seed(0)
    gammas = Gammas()
    sae = make_sae(D_IN, gamma=0.7, gamma_warmup=warmup)
    fit(sae, pair_batches(), steps, callbacks=[gammas])
    assert gammas.seen == pytest.approx([0.7 * factor for factor in expected], abs=1e-3)


def test_accumulated_batches_of_a_step_have_one_gamma() -> None:
    gammas = Gammas()
    sae = ReLUSAE(D_IN, 9, gamma=1.0, gamma_warmup=2)
    fit(sae, pair_batches(), 3, callbacks=[gammas], accumulate_grad_batches=2)
    assert gammas.seen == pytest.approx([0, 0, 0.5, 0.5, 1, 1], abs=1e-4)


@pytest.mark.parametrize("make_sae", [partial(make, "relu"), partial(make, "topk"), partial(make, "spade")])
def test_a_warm_up_continues_where_the_checkpoint_stood(tmp_path: Any, make_sae: Any) -> None:
    """Also where the resumed run is longer: a share is one of the training that began."""

    def new() -> BaseSAE:
        return make_sae(gamma=0.5, gamma_warmup=0.5)

    data = pair_batches(64 * 8)
    whole, first, second = new(), new(), new()
    fit(whole, data, 40)
    half = fit(first, data, 8)
    half.save_checkpoint(tmp_path / "half.ckpt")
    assert first.schedules["regularizer"].n_steps == 4
    fit(second, data, 16, ckpt_path=tmp_path / "half.ckpt")
    assert second.schedules["regularizer"].n_steps == 4
    assert whole.schedules["regularizer"].n_steps == 20


def test_a_resumed_warm_up_ends_with_the_same_weights(tmp_path: Any) -> None:
    whole, first, resumed = (make("relu", gamma=0.5, gamma_warmup=20) for _ in range(3))
    train(whole, 18)
    train(first, 7).save_checkpoint(tmp_path / "first.ckpt")
    train(resumed, 18, ckpt_path=tmp_path / "first.ckpt")
    assert int(resumed.schedules["regularizer"].step) == 17
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_processes_side_by_side_see_the_schedule() -> None:
    members = {name: partial(ReLUSAE, d_sae=9, gamma=5.0, gamma_warmup=6) for name in "ab"}
    weights = []
    for processes in (1, 2):
        torch.manual_seed(0)
        together = Comparison(D_IN, members, processes=processes)
        fit(together, pair_batches(), 8)
        weights.append([p.detach().clone() for p in together.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


def test_losses_of_validation_have_the_whole_gamma() -> None:
    x = pairs()[0]
    sae = ReLUSAE(D_IN, 9, gamma=0.7, gamma_warmup=100)
    fit(sae, pair_batches(), 3)
    terms = sae.evaluate(x).terms
    assert terms["loss"].item() == pytest.approx((terms["mse"] + 0.7 * terms["regularizer"]).item())


class Scheduled(TopKSAE):
    """A term of its own with a schedule of its own."""

    def __init__(self, d_in: int, d_sae: int, **shared: Any) -> None:
        from sae_lightning.modules.schedules import Warmup

        super().__init__(d_in, d_sae, 2, 0.0, **shared)
        self.schedules["size"] = Warmup(4)

    def loss_terms(self, x: Tensor, target: Tensor, out: Any) -> dict[str, Tensor]:
        return {**super().loss_terms(x, target, out), "size": self.sae.decoder.weight.square().sum()}


def test_a_subclass_schedules_its_own_term() -> None:
    sae = Scheduled(D_IN, 9)
    sae.begin_training(10)
    x = pairs()[0]
    sae.initialize(x)
    for step, factor in enumerate([0, 0.25, 0.5, 0.75, 1, 1]):
        sae.advance(step)
        terms = sae.learn(x).terms
        assert terms["loss"].item() == pytest.approx((terms["mse"] + factor * terms["size"]).item(), rel=1e-5)


def test_a_second_training_begins_its_own_warm_up() -> None:
    sae = ReLUSAE(D_IN, 9, gamma_warmup=0.5)
    fit(sae, pair_batches(), 8)
    assert sae.schedules["regularizer"].n_steps == 4
    fit(sae, pair_batches(), 16)
    assert sae.schedules["regularizer"].n_steps == 8


def test_a_short_share_is_at_least_a_step() -> None:
    sae = ReLUSAE(D_IN, 9, gamma_warmup=0.001)
    sae.begin_training(10)
    assert sae.schedules["regularizer"].n_steps == 1


def test_numbers_of_numpy_are_steps_or_shares() -> None:
    for given, steps in ((np.int64(5), 5), (np.float32(0.5), 50)):
        sae = ReLUSAE(D_IN, 9, gamma_warmup=given)
        sae.begin_training(100)
        assert sae.schedules["regularizer"].n_steps == steps


@pytest.mark.parametrize("warmup", [-1, 1.5, -0.1, float("nan"), True, 10**20, "3"])
def test_a_warm_up_of_another_kind_is_refused(warmup: Any) -> None:
    with pytest.raises(ValueError, match=r"gamma_warmup must be a number of steps .* but is "):
        ReLUSAE(D_IN, 9, gamma_warmup=warmup)


def test_a_share_of_endless_training_is_refused() -> None:
    sae = SpaDE(D_IN, 9, gamma_warmup=0.1)
    with pytest.raises(ValueError, match=r"over a share of training, 0\.1, needs trainer\.max_steps or max_epochs"):
        fit(sae, pair_batches(), -1, max_time={"seconds": 30}, max_epochs=-1)


# ---------------------------------------------------------------------- arguments of the base


class Wider(SpaDE):
    """A subclass of a preset that fixes one argument, names one and passes the others on."""

    def __init__(self, d_in: int, d_sae: int, factor: int = 2, **shared: Any) -> None:
        super().__init__(d_in, factor * d_sae, gamma=0.25, **shared)


def test_arguments_that_are_passed_on_are_recorded_with_their_defaults() -> None:
    sae = Wider(D_IN, 5, standardize=False)
    assert sae.init_args["standardize"] is False
    assert sae.init_args["n_init_samples"] == 32_768
    assert sae.init_args["init"] == "data"
    assert "gamma" not in sae.init_args
    assert dict(sae.hparams)["factor"] == 2
    with pytest.raises(TypeError, match="Wider takes no argument gamma: its constructor must name it"):
        Wider(D_IN, 5, gamma=0.1)
    with pytest.raises(TypeError, match="ReLUSAE takes no argument gama"):
        ReLUSAE(D_IN, 5, gama=0.1)


@pytest.mark.parametrize("cls", [ReLUSAE, TopKSAE, SpaDE, Wider, Transcoder])
def test_help_has_the_text_of_every_argument(cls: type[BaseSAE]) -> None:
    import inspect

    import docstring_parser

    docs = [inspect.getdoc(cls) or "", inspect.getdoc(cls.__init__) or ""]
    told = {param.arg_name for doc in docs for param in docstring_parser.parse(doc).params if param.description}
    names = inspect.signature(cls).parameters.keys() - ({"d_in", "d_sae", "factor"} if cls is Wider else set())
    assert names <= told


class Changes(ReLUSAE):
    """A subclass that changes an argument which it does not name."""

    def __init__(self, d_in: int, d_sae: int, **shared: Any) -> None:
        shared.setdefault("pre_code_scale", 0.5)
        super().__init__(d_in, d_sae, **shared)


class Fixes(SpaDE):
    """The same with an argument of the farthest base."""

    def __init__(self, d_in: int, d_sae: int, **shared: Any) -> None:
        super().__init__(d_in, d_sae, **{**shared, "standardize": False})


class Computes(ReLUSAE):
    """A subclass that names an argument, and computes another from it."""

    def __init__(self, d_in: int, d_sae: int, pre_code_scale: float = 0.5, **shared: Any) -> None:
        super().__init__(d_in, d_sae, pre_code_scale=2 * pre_code_scale, **shared)


class Silent(ReLUSAE):
    """A subclass without a constructor of its own."""


def test_a_checkpoint_never_records_what_the_base_did_not_get() -> None:
    with pytest.raises(ValueError, match=r"Changes changes pre_code_scale from 1\.0 to 0\.5 without naming it"):
        Changes(D_IN, 5)
    assert Changes(D_IN, 5, pre_code_scale=0.25).sae.encoder.pre_code_scale == 0.25
    with pytest.raises(ValueError, match="Fixes changes standardize from True to False without naming it"):
        Fixes(D_IN, 5)
    assert Computes(D_IN, 5).sae.encoder.pre_code_scale == 1.0
    with pytest.raises(TypeError, match="Silent takes no argument gama"):
        Silent(D_IN, 5, gama=2)


def test_an_encoder_of_another_space_is_refused() -> None:
    with pytest.raises(ValueError, match="encoder, projection and decoder must agree on d_in and d_sae"):
        BaseSAE(SquaredDistance(6, 9), Orthant(9), Decoder(5, 9), None, 0.0)
