"""A loss that explodes but stays finite: a warning that helps, results that say so, and a checkpoint from before."""

import json
import re
import warnings
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from sae_lightning import Comparison, JumpReLUSAE, ReLUSAE, SpaDE, TopKSAE
from sae_lightning.callbacks import Divergence, RunCheckpoint
from sae_lightning.callbacks.checkpoint_files import checkpoints_by_step
from sae_lightning.modules.run import RunModule
from sae_lightning.run.checkpoint import read_checkpoint
from tests.helpers.probes import DamagedStream
from tests.helpers.runs import run_cli
from tests.helpers.trainers import quiet_trainer

BURST = 23  # the first step whose errors are those of ruined weights


class Ruin(pl.Callback):
    """Multiplies the dictionary of one SAE after a step, as a step of a far too large learning rate would.

    Args:
        steps: After how many steps, by SAE.
        factor: By what.
    """

    def __init__(self, steps, factor=1e4):
        self.steps, self.factor = steps, factor

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        for name, step in self.steps.items():
            if trainer.global_step == step:
                with torch.no_grad():
                    pl_module.saes()[name].sae.decoder.weight.mul_(self.factor)


def spade():
    return SpaDE(3, 8, n_init_samples=16)


def compared(processes=1):
    members = {name: lambda d_in: SpaDE(d_in, 8, n_init_samples=16) for name in ("left", "right")}
    return Comparison(3, members, processes=processes)


def fit(module, folder, *callbacks, ckpt_path=None, data=None, **changes):
    """Train, and return the warnings of divergence."""
    options = {"max_steps": 60, "log_every_n_steps": 1, "limit_val_batches": 0, **changes}
    saved = RunCheckpoint(str(folder / "checkpoints"), every_n_steps=5)
    trainer = quiet_trainer([saved, *callbacks], default_root_dir=folder, **options)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(module, data or DamagedStream(bad_batch=-1), ckpt_path=ckpt_path, weights_only=True)
    return [text for w in caught if "diverged" in (text := str(w.message))]


def kept(folder):
    return sorted(checkpoints_by_step(folder / "checkpoints"))


# ---------------------------------------------------------------------- what is said, and kept


def test_the_warning_names_step_error_and_the_checkpoint_from_before_which_is_kept(tmp_path):
    (warning,) = fit(spade(), tmp_path, Divergence(), Ruin({"": BURST - 1}))
    match = re.fullmatch(
        r"the model has diverged: at step (\d+) its error is (\S+) times that of reconstructing nothing\. Resume from "
        r"the last checkpoint before, --ckpt_path (\S+) \(it is kept\), with a lower learning rate \(lr of its "
        r"optimizer\), or with clipped gradients \(--trainer\.gradient_clip_val 1\)",
        warning,
    )
    assert match, warning
    assert int(match[1]) == BURST
    assert 1e4 < float(match[2]) < 1e9
    assert match[3] == str(tmp_path / "checkpoints" / "step=20.ckpt")
    assert kept(tmp_path) == [20, 55, 60]  # the usual two, and the one from before


def test_the_error_is_that_of_the_batch_relative_to_its_norm(tmp_path):
    """Compared with what a copy of the weights makes of the same batch."""
    expected = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == BURST - 1:
                self.state = {key: value.clone() for key, value in pl_module.state_dict().items()}
            if trainer.global_step == BURST:
                copy = spade()
                copy.load_state_dict(self.state)
                with torch.no_grad():
                    copy.sae.decoder.weight.mul_(1e4)
                    x = copy.sae.standardizer(batch.activations).double()
                    error = copy.sae.standardizer(copy(batch.activations).x_hat).double() - x
                expected.append(float(error.square().sum() / x.square().sum().clamp(min=3.0 * len(x))))

    watch = Divergence()
    fit(spade(), tmp_path, watch, Look(), Ruin({"": BURST - 1}))
    assert watch.found[""].error == pytest.approx(expected[0], rel=1e-4)


@pytest.mark.parametrize("processes", [1, 2])
def test_each_sae_of_a_comparison_is_warned_of_once_by_its_name(processes, tmp_path):
    ruin = Ruin({"left": BURST - 1, "right": BURST + 20})
    left, right = fit(compared(processes), tmp_path, Divergence(), ruin)
    assert left.startswith(f"SAE 'left' has diverged: at step {BURST} ")
    assert right.startswith(f"SAE 'right' has diverged: at step {BURST + 21} ")
    assert all("step=20.ckpt (it is kept)" in text for text in (left, right))  # all of it is from before
    assert kept(tmp_path) == [20, 55, 60]


class Regression(RunModule):
    """No SAE: its loss is a power of ten, by the step."""

    def __init__(self, exponents):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.exponents = exponents
        self._make_optimizer = partial(torch.optim.SGD, lr=0.0)

    def describe(self):
        return {"class_path": "Regression", "init_args": {}}

    def configure_optimizers(self):
        return self.make_optimizer()[0]

    def training_step(self, batch, batch_idx):
        return self.weight * 10.0 ** self.exponents(self.global_step + 1)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.weight * 10.0 ** self.exponents(self.global_step))


def test_a_model_that_is_no_sae_is_judged_by_its_loss(tmp_path):
    falling_then_high = Regression(lambda step: -2 if step < BURST else 3)
    (warning,) = fit(falling_then_high, tmp_path, Divergence())
    assert warning.startswith(f"the model has diverged: at step {BURST} its loss is 1e+05 times that of the first step")
    assert "step=20.ckpt" in warning
    assert kept(tmp_path) == [20, 55, 60]


def test_a_loss_that_falls_far_and_rises_to_where_it_began_has_not_diverged(tmp_path):
    assert not fit(Regression(lambda step: 0.5 if step in (1, 40) else -3), tmp_path, Divergence())


# ---------------------------------------------------------------------- when errors are measured


@pytest.mark.parametrize("every", [1, 10, 50, 0])
def test_divergence_between_logged_steps_is_found_at_the_next_measured_one(every, tmp_path):
    """At the latest in the last step of an epoch, the 30th; no checkpoint since the last measurement is trusted."""
    (warning,) = fit(spade(), tmp_path, Divergence(), Ruin({"": BURST - 1}), log_every_n_steps=every)
    assert f"at step {BURST if every == 1 else 30} " in warning
    assert kept(tmp_path) == ([20, 55, 60] if every == 1 else [15, 55, 60] if every == 10 else [55, 60])
    if every in (0, 50):
        assert "No checkpoint is from before: start a new run with a lower learning rate" in warning


@pytest.mark.parametrize("model", [spade, lambda: Regression(lambda step: 3 if step == 60 else 0)])
def test_weights_ruined_by_the_very_last_step_are_found_by_the_validation_after_it(model, tmp_path):
    class RuinLast(pl.Callback):
        def on_validation_start(self, trainer, pl_module):
            if trainer.global_step == 60 and hasattr(pl_module, "sae"):
                with torch.no_grad():
                    pl_module.sae.decoder.weight.mul_(1e4)

    changes = {"limit_val_batches": 1, "num_sanity_val_steps": 2}
    (warning,) = fit(model(), tmp_path, Divergence(), RuinLast(), **changes)
    assert "at step 60 " in warning
    assert "step=55.ckpt" in warning


def test_steps_that_are_not_measured_read_nothing_from_the_device(tmp_path, monkeypatch):
    measured = []
    judge = Divergence._judge
    monkeypatch.setattr(Divergence, "_judge", lambda *args: (measured.append(args[3]), judge(*args)))
    fit(spade(), tmp_path, Divergence(), log_every_n_steps=20, max_steps=50)
    assert measured == [1, 20, 30, 40, 50]


def test_accumulated_gradients_are_measured_once_a_step(tmp_path):
    (warning,) = fit(spade(), tmp_path, Divergence(), Ruin({"": BURST - 1}), accumulate_grad_batches=2)
    assert f"at step {BURST} " in warning


# ---------------------------------------------------------------------- what does not warn


@pytest.mark.parametrize("model", [ReLUSAE, JumpReLUSAE, SpaDE, partial(TopKSAE, k=4)])
@pytest.mark.parametrize("steps", [1, 3, 60])
def test_a_normal_run_does_not_warn_though_it_begins_with_errors_of_some_hundreds(model, steps, tmp_path):
    class Inflate(pl.Callback):  # initial values of poor scale
        def on_train_start(self, trainer, pl_module):
            with torch.no_grad():
                pl_module.sae.encoder.weight.mul_(30)

    first = []

    class Watch(Divergence):
        def _judge(self, trainer, errors, step, weights):
            first.extend(errors.values())
            super()._judge(trainer, errors, step, weights)

    watch = Watch()
    module = model(3, 8, n_init_samples=16)
    options = {"max_steps": steps, "limit_val_batches": 1}
    assert not fit(module, tmp_path, watch, Inflate(), **options)
    if model in (ReLUSAE, JumpReLUSAE):
        assert 100 < first[0] < 10_000
    assert not watch.found
    assert len(kept(tmp_path)) <= 2  # the usual ones


def test_a_last_batch_of_one_sample_near_the_mean_does_not_warn(tmp_path):
    """Its norm is next to nothing, and so is its error by any other measure."""
    watch = Divergence()
    module = spade()

    class Near(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 40:
                batch.activations.copy_(pl_module.sae.standardizer.input_mean + 1e-4)

    assert not fit(module, tmp_path, watch, Near())


def test_infinity_switches_it_off_and_other_limits_must_exceed_one(tmp_path):
    assert not fit(spade(), tmp_path, Divergence(None), Ruin({"": BURST - 1}))
    for limit in (1.0, 0.0, -3.0, float("nan")):
        with pytest.raises(ValueError, match="limit must be above 1, but is"):
            Divergence(limit)


# ---------------------------------------------------------------------- resuming


def test_a_resumed_run_remembers_errors_findings_and_the_sound_checkpoint(tmp_path):
    fit(spade(), tmp_path, Divergence(), Ruin({"": BURST - 1}), max_steps=30)
    assert kept(tmp_path) == [20, 25, 30]
    last, before = (tmp_path / "checkpoints" / name for name in ("last.ckpt", "step=20.ckpt"))
    # from ruined weights: the same words again, since this process has said nothing yet, and the sound one stays
    (warning,) = fit(spade(), tmp_path, Divergence(), ckpt_path=last)
    assert f"at step {BURST} " in warning
    assert str(before) in warning
    assert kept(tmp_path) == [20, 55, 60]
    # from the sound one: nothing to say
    watch = Divergence()
    assert not fit(spade(), tmp_path, watch, ckpt_path=before)
    assert kept(tmp_path) == [55, 60]
    assert max(watch._lowest.values()) < 1


def test_a_resumed_run_that_diverges_later_is_compared_with_the_errors_before(tmp_path):
    fit(spade(), tmp_path, Divergence(), max_steps=20)
    ruin = Ruin({"": 21}, 100)
    watch = Divergence()
    (warning,) = fit(spade(), tmp_path, watch, ruin, ckpt_path=tmp_path / "checkpoints" / "last.ckpt")
    assert "at step 22 " in warning
    assert kept(tmp_path)[0] == 20


# ---------------------------------------------------------------------- the command line: the advice, literally

DATA = ["--data", "SeparabilityDataModule", "--data.n_per_concept", 200, "--data.n_val_per_concept", 20]
DATA += ["--data.n_test_per_concept", 20, "--data.batch_size", 64]
QUIET = ["--figures.on_validation", "false", "--receptive_fields.resolution", 10, "--progress.refresh_rate", 0]
MODEL = ["--model", "ReLUSAE", "--model.d_sae", 16, "--model.optimizer", "torch.optim.Adam"]


def diverged(outcome):
    return [text for text in outcome.warnings if "has diverged" in text]


def test_the_advice_followed_literally_brings_the_run_to_a_good_end(tmp_path):
    """A rate that is good at first is raised on resume to one that explodes; then the advice is followed."""
    run = tmp_path / "run"
    args = ["fit", *DATA, *MODEL, *QUIET, "--run_dir", run, "--trainer.log_every_n_steps", 1]
    args += ["--checkpoint.every_n_steps", 5]
    outcome = run_cli(*args, "--model.optimizer.lr", 0.01, "--trainer.max_steps", 20)
    assert outcome.code == 0, outcome.err
    assert not diverged(outcome)
    assert json.loads((run / "results.json").read_text())["fit"]["diverged"] == []

    config = ["fit", "-c", run / "config.yaml"]
    last = run / "checkpoints" / "last.ckpt"
    outcome = run_cli(*config, "--ckpt_path", last, "--model.optimizer.lr", 30, "--trainer.max_steps", 40)
    assert outcome.code == 0, outcome.err
    (warning,) = diverged(outcome)
    results = json.loads((run / "results.json").read_text())["fit"]
    (found,) = results["diverged"]
    assert found["sae"] is None
    assert f"at step {found['step']} " in warning
    path = re.search(r"--ckpt_path (\S+) \(it is kept\)", warning)[1]
    assert found["checkpoint"] == path
    step = read_checkpoint(path)["global_step"]
    assert step < found["step"]

    outcome = run_cli(*config, "--ckpt_path", path, "--model.optimizer.lr", 0.01, "--trainer.gradient_clip_val", 1)
    assert outcome.code == 0, outcome.err
    assert not diverged(outcome)
    results = json.loads((run / "results.json").read_text())["fit"]
    assert results["diverged"] == []
    assert results["steps"] == 40
    assert results["metrics"]["val/nmse"] < 1
