import copy
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from sae_lightning.data import ActivationBatch
from sae_lightning.modules import Comparison, ComposedSAE, JumpReLUSAE, ReLUSAE, SpaDE, TopKSAE
from sae_lightning.nn import FIRING_THRESHOLD, Affine, Orthant, Standardizer
from tests.helpers.data import BATCH, D_IN, Batches, Clusters, stream
from tests.helpers.modules import D_SAE, PRESETS, is_plain, make
from tests.helpers.tensors import assert_same
from tests.helpers.trainers import fit, make_trainer

EVERY_PRESET = pytest.mark.parametrize("name", PRESETS)


@EVERY_PRESET
@pytest.mark.parametrize("standardize", [True, False])
def test_forward_is_decode_of_encode(name: str, standardize: bool) -> None:
    sae = make(name, standardize=standardize)
    sae.initialize(stream(Clusters(), 300))
    for shape in [(D_IN,), (7, D_IN), (2, 3, D_IN), (0, D_IN)]:
        x = 10 + 4 * torch.randn(shape)
        out = sae(x)
        codes = sae.encode(x)
        assert codes.shape == (*shape[:-1], D_SAE)
        assert torch.equal(out.codes, codes)
        assert torch.equal(out.x_hat, sae.decode(codes))
        assert out.x_hat.shape == shape
        assert bool((codes >= 0).all())


@EVERY_PRESET
def test_training_lowers_the_loss(name: str) -> None:
    losses = []
    for steps in (0, 75):
        sae = make(name, lr_scheduler=None)
        trainer = fit(sae, steps)
        assert trainer.global_step == steps
        assert sae.samples_seen == steps * BATCH
        losses.append(sae.evaluate(Clusters().split("val").activations).terms["loss"].item())
    assert losses[1] < 0.85 * losses[0]


@EVERY_PRESET
def test_every_parameter_learns(name: str) -> None:
    sae = make(name)
    fit(sae, 0)
    before = {key: value.detach().clone() for key, value in sae.named_parameters()}
    fit(sae, 10)
    assert [key for key, value in sae.named_parameters() if torch.equal(value, before[key])] == []


@EVERY_PRESET
def test_standardisation_is_that_of_the_first_training_samples(name: str) -> None:
    sae = make(name, n_init_samples=210)
    fit(sae, 0)
    x = stream(Clusters(), 210).double().numpy()
    mean = x.mean(0)
    scale = np.sqrt(((x - mean) ** 2).sum(1).mean() / D_IN)
    np.testing.assert_allclose(sae.sae.standardizer.input_mean, mean, rtol=1e-6)
    np.testing.assert_allclose(sae.sae.standardizer.input_scale, scale, rtol=1e-6)
    assert sae.evaluate(torch.tensor(x)).x.square().sum(-1).mean() == pytest.approx(D_IN, rel=1e-5)


@pytest.mark.parametrize("name", ["spade", "composed-distance", "composed-ball"])
def test_prototypes_are_training_samples_and_lambda_gives_the_wanted_l0(name: str) -> None:
    sae = make(name, n_init_samples=600)
    fit(sae, 0)
    x = sae.sae.standardize(stream(Clusters(), 600))
    points = {tuple(row) for row in x.tolist()}
    assert {tuple(row) for row in sae.sae.encoder.weight.tolist()} <= points
    assert torch.equal(sae.sae.encoder.weight, sae.sae.decoder.weight)
    l0 = (sae.encode(stream(Clusters(), 512)) > FIRING_THRESHOLD).sum(-1).double().mean()
    assert l0 == pytest.approx(sae.l0_init, abs=0.05)


@pytest.mark.parametrize("init", ["unit", "normal", "data"])
def test_affine_rows(init: Any) -> None:
    sae = make("relu", init=init)
    fit(sae, 0)
    norms = sae.sae.encoder.weight.norm(dim=1)
    assert bool(((norms - 1).abs() < 1e-5).all()) == (init != "normal")
    x = sae.sae.standardize(stream(Clusters(), 800))
    closest = torch.nn.functional.cosine_similarity(sae.sae.encoder.weight[:, None], x, dim=-1).amax(1)
    assert bool((closest > 1 - 1e-6).all()) == (init == "data")


def test_data_initialisation_takes_at_least_a_sample_per_latent() -> None:
    sae = make("spade", n_init_samples=2)
    fit(sae, 0)
    assert len({tuple(row) for row in sae.sae.encoder.weight.tolist()}) == D_SAE
    assert {tuple(r) for r in sae.sae.encoder.weight.tolist()} == {
        tuple(r) for r in sae.sae.standardize(stream(Clusters(), D_SAE)).tolist()
    }


def test_spade_l0_by_default() -> None:
    assert [SpaDE(2, d_sae).l0_init for d_sae in (1, 8, 32, 128)] == [1, 4, 16, 16]
    assert SpaDE(2, 128, lambda_init=0.25).l0_init is None
    sae = SpaDE(D_IN, 64, lambda_init=0.25)
    fit(sae, 0)
    assert sae.sae.encoder.scale.item() == pytest.approx(0.25)


@EVERY_PRESET
def test_initialised_once(name: str, tmp_path: Path) -> None:
    sae = make(name)
    trainer = fit(sae, 5)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    trained = copy.deepcopy(sae.state_dict())
    other = Clusters(seed=7)

    fit(sae, 0, other)  # again in one program
    assert_same(sae.state_dict(), trained)

    resumed = make(name, seed=9)
    fit(resumed, 5, other, ckpt_path=tmp_path / "a.ckpt")  # and from a checkpoint
    assert_same(resumed.state_dict(), trained)
    assert resumed.samples_seen == 5 * BATCH

    fresh = make(name)
    fit(fresh, 0, other)  # while a new one does take the other data's
    assert not torch.equal(fresh.sae.standardizer.input_mean, sae.sae.standardizer.input_mean)


@EVERY_PRESET
def test_without_standardisation(name: str) -> None:
    sae = make(name, standardize=False, optimizer=partial(torch.optim.Adam, lr=1e-3))
    fit(sae, 3)
    standardizer = sae.sae.standardizer
    assert isinstance(standardizer, Standardizer)
    assert bool((standardizer.input_mean == 0).all())
    assert standardizer.input_scale == 1
    x = torch.randn(4, D_IN)
    assert torch.equal(sae.evaluate(x).x, x)
    assert torch.equal(sae(x).x_hat, sae.sae.autoencode(x).x_hat)


def test_same_seed_same_draw_whatever_was_drawn_before() -> None:
    weights = []
    for seed, drawn in [(1, 0), (1, 100), (2, 0)]:
        pl.seed_everything(seed, verbose=False)
        torch.randn(drawn)
        weights.append(ReLUSAE(D_IN, D_SAE).sae.encoder.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@EVERY_PRESET
def test_describes_itself_in_plain_values(name: str) -> None:
    description = make(name).describe()
    assert is_plain(description)
    assert not {"optimizer", "lr_scheduler"} & description["init_args"].keys()
    assert description["init_args"]["d_sae"] == D_SAE


def test_describes_numbers_of_numpy_in_plain_values() -> None:
    sae = SpaDE(np.int64(4), np.int64(8), gamma=np.logspace(-3, 0, 4)[1], l0_init=np.float32(2))
    assert is_plain(sae.describe())
    assert is_plain(dict(sae.hparams))


@EVERY_PRESET
def test_works_with_any_data_loader(name: str) -> None:
    x = stream(Clusters(), 320)
    sae = make(name)
    loaders = [
        DataLoader(TensorDataset(x), batch_size=BATCH),
        DataLoader(TensorDataset(x, torch.zeros(320, dtype=torch.int64)), batch_size=BATCH),
        Batches(x.double().split(BATCH)),
        Batches([ActivationBatch(x.half(), torch.zeros(320).long())] * 10),
        Batches(x.split(BATCH), sized=False),
    ]
    for i, loader in enumerate(loaders):
        trainer = make_trainer(3)
        trainer.fit(sae, train_dataloaders=loader, val_dataloaders=[])
        assert trainer.global_step == 3, i
    assert all(p.dtype == torch.float32 and bool(p.isfinite().all()) for p in sae.parameters())


@EVERY_PRESET
def test_validates_tests_and_predicts(name: str) -> None:
    sae, data = make(name), Clusters()
    trainer = make_trainer(2, limit_val_batches=None, num_sanity_val_steps=1)
    trainer.fit(sae, datamodule=data)
    before = copy.deepcopy(sae.state_dict())
    keys = {"loss", "mse", "regularizer", "l0"}
    for stage, run in (("val", trainer.validate), ("test", trainer.test)):
        x = data.split(stage).activations
        (result,) = run(sae, datamodule=data, verbose=False)
        assert result.keys() == {f"{stage}/{key}" for key in keys}
        expected = sae.evaluate(x)
        assert result[f"{stage}/mse"] == pytest.approx(expected.terms["mse"].item(), rel=1e-5)
        assert result[f"{stage}/loss"] == pytest.approx(
            expected.terms["mse"].item() + sae.gamma * expected.terms["regularizer"].item(), rel=1e-5
        )
        assert result[f"{stage}/l0"] == pytest.approx((sae.encode(x) > 1e-6).sum(1).double().mean().item(), rel=1e-5)
    predictions = trainer.predict(sae, datamodule=data)
    codes = torch.cat([batch.codes[""] for batch in predictions])
    torch.testing.assert_close(codes, sae.encode(data.split("test").activations))
    assert torch.equal(torch.cat([batch.concepts for batch in predictions]), data.split("test").concepts)
    assert_same(sae.state_dict(), before)  # looking changes nothing


@EVERY_PRESET
def test_an_empty_evaluation_batch_counts_nothing(name: str) -> None:
    # under DDP the last evaluation batch of a rank may be empty: 5 samples make 2 batches of 2 on 2 ranks
    sae = make(name)
    x = stream(Clusters(), 50)
    sae.initialize(x)
    trainer = make_trainer(1, limit_val_batches=None)
    (alone,) = trainer.validate(sae, dataloaders=Batches([x]), verbose=False)
    (with_empty,) = trainer.validate(sae, dataloaders=Batches([x, x[:0]]), verbose=False)
    assert with_empty == pytest.approx(alone)


def test_train_logs_its_terms() -> None:
    sae = make("spade")
    trainer = make_trainer(4, log_every_n_steps=2)
    trainer.fit(sae, datamodule=Clusters())
    metrics = trainer.callback_metrics
    assert metrics.keys() >= {"train/loss", "train/mse", "train/regularizer", "train/l0"}
    assert metrics["train/loss"] == pytest.approx(
        metrics["train/mse"].item() + sae.gamma * metrics["train/regularizer"].item(), rel=1e-5
    )


def test_batches_silent_counts() -> None:
    sae = make("relu")
    sae.initialize(stream(Clusters(), 100))
    with torch.no_grad():
        sae.sae.encoder.bias[3] = -1e6
        sae.sae.encoder.bias[4] = 1e6
    for _ in range(3):
        sae.learn(stream(Clusters(), BATCH))
    assert sae.sae.batches_silent[3:5].tolist() == [3, 0]
    sae.evaluate(stream(Clusters(), BATCH))
    assert sae.sae.batches_silent[3] == 3


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SpaDE(4, 8, gamma=-0.5), r"gamma must be at least 0 and finite, but is -0\.5"),
        (lambda: ReLUSAE(4, 8, gamma=float("nan")), "gamma must be at least 0 and finite, but is nan"),
        (lambda: TopKSAE(4, 8, k=9), "k must lie between 1 and d_sae = 8, but is 9"),
        (lambda: TopKSAE(4, 8, k=0), "k must lie between 1 and d_sae = 8, but is 0"),
        (lambda: TopKSAE(4, 8), "k must lie between 1 and d_sae = 8, but is 32"),
        (lambda: TopKSAE(4, 8, k=2, k_aux=0), "k_aux must be at least 1, but is 0"),
        (lambda: TopKSAE(4, 8, k=2, dead_after=0), "dead_after must be at least 1, but is 0"),
        (lambda: SpaDE(4, 8, l0_init=0.5), r"l0_init must lie between 1 and d_sae = 8, but is 0\.5"),
        (lambda: SpaDE(4, 8, l0_init=9), "l0_init must lie between 1 and d_sae = 8, but is 9"),
        (
            lambda: SpaDE(4, 8, lambda_init=0.1, l0_init=4),
            r"give lambda_init or l0_init, not both: they are 0\.1 and 4",
        ),
        (lambda: SpaDE(4, 8, lambda_init=0), "lambda_init must be positive and finite, but is 0"),
        (lambda: SpaDE(0, 8), "d_in must be at least 1, but is 0"),
        (lambda: SpaDE(4, 0), "d_sae must be at least 1, but is 0"),
        (lambda: SpaDE(4, 8, n_init_samples=0), "n_init_samples must be at least 1, but is 0"),
        (lambda: JumpReLUSAE(4, 8, threshold_init=0), "threshold_init must be positive and finite, but is 0"),
        (lambda: JumpReLUSAE(4, 8, bandwidth=-1), "bandwidth must be positive and finite, but is -1"),
        (lambda: ReLUSAE(4, 8, pre_code_scale=0), "pre_code_scale must be positive and finite, but is 0"),
        (lambda: ReLUSAE(4, 8, decoder_bias=False), "subtract_decoder_bias needs a decoder with a bias"),
        (lambda: make("composed-distance", projection=Orthant), "SquaredDistance .* never positive.* use Simplex"),
        (lambda: make("composed-distance", encoder=Affine, l0_init=None), "needs the encoder SquaredDistance"),
        (lambda: ComposedSAE(4, 8, Affine, Orthant, l0_init=2), "l0_init needs the encoder SquaredDistance"),
    ],
)
def test_bad_arguments(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def test_wrong_init_is_refused() -> None:
    with pytest.raises(ValueError, match=r"init must be .*'unitt'"):
        ReLUSAE(4, 8, init="unitt")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [lambda sae: sae, lambda sae: Comparison(D_IN, {"a": lambda d_in: sae})])
def test_plateau_schedules_are_refused(wrap: Any) -> None:
    module = wrap(make("relu", lr_scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau))
    with pytest.raises(ValueError, match="lr_scheduler must step by training steps, which ReduceLROnPlateau cannot"):
        fit(module, 1)


@pytest.mark.parametrize("name", ["spade", "topk"])
def test_schedule_steps_with_every_training_step(name: str) -> None:
    trainer = fit(make(name), 30)
    last = {"spade": 1e-2 * (1 + np.cos(np.pi / 2)) / 2, "topk": 1e-2 * 0.8**3}[name]
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(last)
