import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from sae_lightning.modules import Comparison, SpaDE
from tests.helpers.data import BATCH, D_IN, Batches, Clusters, stream
from tests.helpers.modules import PRESETS, is_plain, make
from tests.helpers.tensors import assert_same
from tests.helpers.trainers import fit, make_trainer

STEPS = 60
CLIP = {"gradient_clip_val": 0.5}


def compare(names: Any = PRESETS, seed: int = 1) -> Comparison:
    pl.seed_everything(seed, verbose=False)
    return Comparison(D_IN, {name: PRESETS[name] for name in names})


def scheduler_state(trainer: pl.Trainer) -> Any:
    configs = trainer.lr_scheduler_configs
    return configs[0].scheduler.state_dict() if configs else None


# -- as if alone ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=[CLIP, {**CLIP, "gradient_clip_algorithm": "value"}], ids=["norm", "value"])
def clipping(request: pytest.FixtureRequest) -> dict[str, Any]:
    return request.param


@pytest.fixture(scope="module")
def together(clipping: dict[str, Any]) -> tuple[Comparison, pl.Trainer]:
    module = compare()
    return module, fit(module, STEPS, **clipping)


@pytest.mark.parametrize("name", PRESETS)
def test_members_train_as_if_alone(
    together: tuple[Comparison, pl.Trainer], clipping: dict[str, Any], name: str
) -> None:
    comparison, trainer = together
    alone = make(name)
    own_trainer = fit(alone, STEPS, **clipping)
    assert_same(comparison.saes()[name].state_dict(), alone.state_dict())  # weights, standardisation, batches_silent
    assert_same(trainer.optimizers[0].optimizers[name].state_dict(), own_trainer.optimizers[0].state_dict())
    schedules = scheduler_state(trainer)
    if own_trainer.lr_scheduler_configs:
        assert_same(schedules[name], scheduler_state(own_trainer))
    else:
        assert name not in schedules
    if name == "topk":  # there was something for aux-k to do
        assert bool((alone.sae.batches_silent >= 3).any())


@pytest.mark.parametrize("name", ["relu", "jumprelu", "topk"])
def test_clipping_was_active(together: tuple[Comparison, pl.Trainer], name: str) -> None:
    without = make(name)
    fit(without, STEPS)
    assert not torch.equal(together[0].saes()[name].sae.encoder.weight, without.sae.encoder.weight)


def test_a_step_is_counted_once(together: tuple[Comparison, pl.Trainer]) -> None:
    comparison, trainer = together
    assert trainer.global_step == STEPS
    assert len(trainer.optimizers) == 1
    assert comparison.samples_seen == STEPS * BATCH


def test_a_bad_member_does_not_disturb_the_others() -> None:
    module = Comparison(D_IN, {"spade": PRESETS["spade"], "bad": lambda d_in: make("relu", d_in=d_in)})
    with torch.no_grad():
        module.saes()["bad"].sae.decoder.bias.fill_(math.nan)
    fit(module, 5, **CLIP)
    alone = make("spade")
    fit(alone, 5, **CLIP)
    assert not bool(module.saes()["bad"].sae.encoder.weight.isfinite().all())
    assert_same(module.saes()["spade"].state_dict(), alone.state_dict())


def test_a_comparison_of_one() -> None:
    comparison, alone = compare(["topk"]), make("topk")
    fit(comparison, 5)
    fit(alone, 5)
    assert_same(comparison.saes()["topk"].state_dict(), alone.state_dict())


@pytest.mark.parametrize("name", ["spade", "relu"])
def test_accumulated_gradients(name: str) -> None:
    comparison = compare(["spade", "relu"])
    trainer = fit(comparison, 5, accumulate_grad_batches=2, **CLIP)
    assert trainer.global_step == 5
    assert comparison.samples_seen == 10 * BATCH
    alone = make(name)
    fit(alone, 5, accumulate_grad_batches=2, **CLIP)
    assert_same(comparison.saes()[name].state_dict(), alone.state_dict())


def test_accumulated_gradients_are_those_of_the_whole_batch() -> None:
    x = stream(Clusters(), 6 * BATCH)
    comparison, alone = compare(["relu", "spade"]), make("relu")
    make_trainer(3, accumulate_grad_batches=2).fit(
        comparison, train_dataloaders=Batches(x.split(BATCH)), val_dataloaders=[]
    )
    make_trainer(3).fit(alone, train_dataloaders=Batches(x.split(2 * BATCH)), val_dataloaders=[])
    for p, q in zip(comparison.saes()["relu"].parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


# -- resuming -------------------------------------------------------------------------------------------------------


def half_trained(module: Any, saved: str, data: Clusters, steps: int, folder: Path) -> Path:
    """Train and save at `steps`: while a longer training goes on, or after it has ended."""
    path = folder / "half.ckpt"
    if saved == "after training":
        fit(module, steps, data, **CLIP).save_checkpoint(path)
        return path

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == steps:
                trainer.save_checkpoint(path)

    fit(module, steps + 3, data, callbacks=[Save()], **CLIP)
    return path


@pytest.mark.parametrize("saved", ["during training", "after training"])
@pytest.mark.parametrize("per_epoch", [10, 25, 50], ids="{} steps per epoch".format)
@pytest.mark.parametrize("kind", ["comparison", "topk"])
def test_a_resumed_run_equals_an_uninterrupted_one(kind: str, per_epoch: int, saved: str, tmp_path: Path) -> None:
    def new(seed: int) -> Any:
        return compare(seed=seed) if kind == "comparison" else make(kind, seed=seed)

    whole = new(1)
    whole_trainer = fit(whole, 40, Clusters(per_epoch), **CLIP)
    path = half_trained(new(1), saved, Clusters(per_epoch), 20, tmp_path)
    resumed = new(99)
    trainer = fit(resumed, 40, Clusters(per_epoch), ckpt_path=path, **CLIP)

    assert trainer.global_step == 40
    assert_same(scheduler_state(trainer), scheduler_state(whole_trainer))
    assert resumed.samples_seen == whole.samples_seen == 40 * BATCH
    assert_same(resumed.state_dict(), whole.state_dict())
    assert_same(trainer.optimizers[0].state_dict(), whole_trainer.optimizers[0].state_dict())


def test_everything_that_is_trained_is_restored(tmp_path: Path) -> None:
    path = half_trained(compare(), "after training", Clusters(50), 20, tmp_path)
    before = torch.load(path, weights_only=True)
    resumed = compare(seed=99)
    trainer = fit(resumed, 20, Clusters(50), ckpt_path=path)  # no step is left to take
    assert_same(dict(resumed.state_dict()), dict(before["state_dict"]))
    assert_same(trainer.optimizers[0].state_dict(), before["optimizer_states"][0])
    assert_same(scheduler_state(trainer), before["lr_schedulers"][0])
    assert resumed.samples_seen == 20 * BATCH


def test_a_checkpoint_of_another_class_is_refused(tmp_path: Path) -> None:
    fit(make("relu"), 1).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"is of class .*ReLUSAE, but the model is of class .*Comparison"):
        fit(compare(["relu"]), 2, ckpt_path=tmp_path / "a.ckpt")


# -- names and logs -------------------------------------------------------------------------------------------------


def test_logs_under_the_members_names() -> None:
    module = compare(["spade", "topk"])
    trainer = fit(module, 2, limit_val_batches=2, val_check_interval=2, log_every_n_steps=1)
    for name in ("spade", "topk"):
        assert trainer.callback_metrics.keys() >= {f"{name}/train/loss", f"{name}/train/l0", f"{name}/val/mse"}
    predictions = trainer.predict(module, datamodule=Clusters())
    assert predictions[0].codes.keys() == {"spade", "topk"}


def test_describes_its_members_in_plain_values() -> None:
    description = compare().describe()
    assert is_plain(description)
    assert list(description["init_args"]["members"]) == list(PRESETS)
    assert description["init_args"]["members"]["spade"]["init_args"]["l0_init"] == 5


def test_no_members() -> None:
    with pytest.raises(ValueError, match="members must name at least one SAE, but is empty"):
        Comparison(D_IN, {})


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "a b", "..", "ü", "a\n"])
def test_bad_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"letters, digits, '-' and '_', but one is "):
        Comparison(D_IN, {"good": PRESETS["spade"], name: PRESETS["relu"]})


@pytest.mark.parametrize("name", ["a", "SpaDE-0_1", "8", "keys", "type", "train", "half", "forward"])
def test_good_names(name: str) -> None:
    module = Comparison(D_IN, {name: PRESETS["spade"], "other": PRESETS["relu"]})
    assert isinstance(module.saes()[name], SpaDE)


def test_members_of_other_sizes_are_refused() -> None:
    module = Comparison(D_IN, {"a": PRESETS["relu"], "b": lambda d_in: make("relu", d_in=d_in + 1)})
    with pytest.raises(ValueError, match=r"\(n, 7\)"):
        fit(module, 1)
