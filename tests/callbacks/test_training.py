"""What callbacks do in training: dynamics, progress, checkpoints, results; with a Trainer in Python."""

import json
import math
import os
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from sae_lightning import Comparison, JumpReLUSAE, SeparabilityDataModule, SpaDE, TopKSAE, load_codes, load_sae
from sae_lightning.callbacks import (
    CodesWriter,
    ConceptRecovery,
    ReceptiveFields,
    RecoveryFigures,
    RecoveryTable,
    ResultsWriter,
    RunCheckpoint,
    SAEProgressBar,
    TrainingDynamics,
)
from sae_lightning.callbacks.results import load_results
from sae_lightning.modules.module import log_key
from sae_lightning.modules.optimizers import own_optimizer
from sae_lightning.run.loggers import RunCSVLogger, RunTensorBoardLogger
from tests.helpers.runs import rows
from tests.helpers.trainers import quiet_trainer


def adam(params):
    return torch.optim.Adam(params, lr=1e-2)


def decay(optimizer):
    return torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)


def sae(cls=SpaDE, **arguments):
    return cls(d_in=2, d_sae=16, n_init_samples=64, **arguments)


def data():
    return SeparabilityDataModule(
        n_per_concept=300, n_val_per_concept=20, n_test_per_concept=21, batch_size=16, eval_batch_size=50, seed=0
    )


def trainer(folder, *callbacks, logger=True, **arguments):
    loggers = [RunTensorBoardLogger(str(folder)), RunCSVLogger(str(folder))] if logger else False
    arguments = {"max_steps": 12, "val_check_interval": 12, "log_every_n_steps": 3, **arguments}
    return quiet_trainer(
        callbacks,
        logger=loggers,
        default_root_dir=folder,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        **arguments,
    )


class Watch(pl.Callback):
    """Takes down, before every step, what TrainingDynamics may log."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        scalars = {}
        for name, one in pl_module.saes().items():
            own = {**one.sae.dynamics(), "silent_latents": (one.sae.batches_silent >= 2).float().mean()}
            own["lr"] = own_optimizer(optimizer, name).param_groups[0]["lr"]
            scalars |= {log_key(name, "train", key): float(value) for key, value in own.items()}
        self.seen.append(scalars)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: sae(optimizer=adam, lr_scheduler=decay), "train/lambda"),
        (lambda: sae(JumpReLUSAE, optimizer=adam, lr_scheduler=decay), "train/threshold"),
        (lambda: sae(TopKSAE, k=2, optimizer=adam, lr_scheduler=decay), "train/silent_latents"),
        (lambda: Comparison(2, {"a": lambda d_in: sae(optimizer=adam, lr_scheduler=decay)}), "a/train/lambda"),
    ],
    ids=["SpaDE", "JumpReLUSAE", "TopKSAE", "Comparison"],
)
def test_dynamics_are_logged_at_logging_steps_only(make, key, tmp_path):
    pl.seed_everything(0, verbose=False)
    watch, module = Watch(), make()
    logged = []

    class Spy(TrainingDynamics):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            before = pl_module.log
            count = []
            pl_module.log = lambda *args, **kwargs: (count.append(args[0]), before(*args, **kwargs))
            super().on_before_optimizer_step(trainer, pl_module, optimizer)
            pl_module.log = before
            logged.append(len(count))

    trainer(tmp_path, watch, Spy(silent_after=2), limit_val_batches=0).fit(module, data())
    assert [count > 0 for count in logged] == [step % 3 == 2 for step in range(12)]
    rates = [log_key(name, "train", "lr") for name in module.saes()]
    found = {int(row["step"]): row for row in rows(tmp_path) if row[rates[0]]}
    assert sorted(found) == [2, 5, 8, 11]
    assert any(name.startswith(key) for name in watch.seen[0])
    for step, row in found.items():
        for name, value in watch.seen[step].items():
            assert float(row[name]) == pytest.approx(value, rel=1e-5), (step, name)
    assert float(found[11][rates[0]]) == pytest.approx(1e-2 * 0.5**11)


def test_the_share_of_silent_latents_is_counted(tmp_path):
    module = sae(TopKSAE, k=1)
    with torch.no_grad():
        module.sae.encoder.weight[4:] = 0  # twelve of sixteen latents cannot win
    trainer(tmp_path, TrainingDynamics(silent_after=3), limit_val_batches=0, max_steps=3).fit(module, data())
    assert float(rows(tmp_path)[-1]["train/silent_latents"]) == pytest.approx(0.75, abs=0.15)
    assert float(rows(tmp_path)[-1]["train/silent_latents"]) >= 0.75


def test_the_progress_bar_shows_loss_l0_and_samples_per_second(tmp_path):
    bar, seen = SAEProgressBar(refresh_rate=1), []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            seen.append(bar.get_metrics(trainer, pl_module))

    trainer(tmp_path, bar, Look()).fit(sae(), data())
    assert {"train/loss", "train/l0", "samples/s"} <= seen[-1].keys()
    assert "v_num" not in seen[-1]
    rate = int(seen[-1]["samples/s"].replace(",", ""))
    assert 12 * 16 / 100 < rate < 10**7


def test_checkpoints_are_the_newest_two(tmp_path):
    class Look(pl.Callback):
        seen = []  # noqa: RUF012

        def on_train_batch_end(self, trainer, *args):
            folder = tmp_path / "checkpoints"
            self.seen.append(sorted(p.name for p in folder.iterdir()) if folder.exists() else [])

    checkpoint = RunCheckpoint(str(tmp_path / "checkpoints"), every_n_steps=5)
    trainer(tmp_path, Look(), checkpoint).fit(sae(), data())
    folder = tmp_path / "checkpoints"
    assert Look.seen[8] == ["last.ckpt", "step=5.ckpt"]
    assert Look.seen[11] == ["last.ckpt", "step=10.ckpt", "step=5.ckpt"]
    assert sorted(path.name for path in folder.iterdir()) == ["last.ckpt", "step=10.ckpt", "step=12.ckpt"]
    assert os.readlink(folder / "last.ckpt") == "step=12.ckpt"
    assert torch.load(folder / "last.ckpt", weights_only=True)["global_step"] == 12
    assert load_sae(folder / "last.ckpt").d_sae == 16


def test_the_last_step_is_not_written_twice(tmp_path, monkeypatch):
    saved = []
    save = pl.Trainer.save_checkpoint

    def record(self, path, *args, **kwargs):
        saved.append(Path(path).name)
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(pl.Trainer, "save_checkpoint", record)
    trainer(tmp_path, RunCheckpoint(str(tmp_path / "checkpoints"), every_n_steps=6)).fit(sae(), data())
    assert saved == ["step=6.ckpt", "step=12.ckpt"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RunCheckpoint(every_n_steps=0), "every_n_steps must be at least 1, but is 0"),
        (lambda: RunCheckpoint(keep=0), "keep must be at least 1, but is 0"),
        (lambda: TrainingDynamics(silent_after=0), "silent_after must be at least 1, but is 0"),
        (lambda: ReceptiveFields(resolution=1), "resolution must be at least 2, but is 1"),
        (lambda: RecoveryTable(found_above=1.1), "found_above must lie between 0 and 1, but is 1.1"),
    ],
)
def test_arguments_are_checked(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_callbacks_work_without_a_logger(tmp_path):
    callbacks = [ConceptRecovery(), RecoveryFigures(), ReceptiveFields(), RecoveryTable(), TrainingDynamics()]
    run = trainer(tmp_path, *callbacks, ResultsWriter(), logger=False)
    module = sae()
    run.fit(module, data())
    run.test(module, data(), verbose=False)
    assert run.callback_metrics["test/f1"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("callback", [RecoveryFigures, ReceptiveFields, RecoveryTable])
def test_figures_and_tables_need_a_measurement(callback, tmp_path):
    with pytest.raises(ValueError, match=f"{callback.__name__} needs ConceptRecovery, which is not among the callback"):
        trainer(tmp_path, callback()).test(sae(), data(), verbose=False)


@pytest.mark.slow
@pytest.mark.parametrize("on_validation", [True, False])
def test_documented_figures_are_written(on_validation, tmp_path):
    module = Comparison(2, {"a": lambda d_in: sae(), "b": lambda d_in: sae(TopKSAE, k=2)})
    callbacks = [ConceptRecovery(), RecoveryFigures(on_validation), ReceptiveFields(resolution=10)]
    run = trainer(tmp_path, *callbacks)
    run.fit(module, data())
    run.test(module, data(), verbose=False)
    found = {str(path.relative_to(tmp_path / "figures")) for path in (tmp_path / "figures").rglob("*.png")}
    shared = {"concept_f1", "f1_against_l0", "nmse_against_l0", "metrics_against_l0"}
    expected = {f"test/{name}.png" for name in shared}
    for name in "ab":
        expected |= {f"{name}/test/{figure}.png" for figure in ("code_similarity", "latent_similarity")}
        expected |= {f"{name}/test/receptive_fields.png"}
    if on_validation:
        expected |= {f"val/{name}.png" for name in shared} | {f"{name}/val/latent_similarity.png" for name in "ab"}
    assert found == expected
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in (tmp_path / "figures").rglob("*.png"))


def test_max_saes_leaves_out_figures_of_single_saes(tmp_path):
    module = Comparison(2, {"a": lambda d_in: sae(), "b": lambda d_in: sae(TopKSAE, k=2)})
    run = trainer(tmp_path, ConceptRecovery(), RecoveryFigures(max_saes=1), ReceptiveFields(10, max_saes=1))
    run.test(module, data(), verbose=False)
    assert {path.parent.name for path in (tmp_path / "figures").rglob("*.png")} == {"test"}
    assert not (tmp_path / "figures" / "a").exists()


def test_receptive_fields_are_drawn_in_raw_units(monkeypatch, tmp_path):
    drawn = []

    def record(fields, extent, points, concepts, names, **kwargs):
        drawn.append((fields, extent, kwargs))
        from matplotlib.figure import Figure

        return Figure()

    monkeypatch.setattr("sae_lightning.callbacks.receptive_fields.receptive_fields", record)
    source = data()
    recovery = ConceptRecovery()
    module = sae()
    run = trainer(tmp_path, recovery, ReceptiveFields(resolution=11))
    run.fit(module, source)
    run.test(module, source, verbose=False)
    ((fields, extent, marks),) = drawn
    assert fields.shape == (6, 11, 11)
    latents = recovery.results[""].f1.best_latent
    x, y = torch.linspace(extent[0], extent[1], 11), torch.linspace(extent[2], extent[3], 11)
    for row, column in ((0, 0), (5, 2), (10, 10)):
        with torch.no_grad():
            code = module.encode(torch.tensor([x[column], y[row]]))[latents]
        torch.testing.assert_close(fields[:, row, column], code, rtol=1e-4, atol=1e-5)
    prototypes = module.sae.standardizer.inverse(module.sae.encoder.weight.detach())[latents]
    torch.testing.assert_close(marks["prototypes"], prototypes)
    points = source.split("test").activations
    assert extent[0] < points[:, 0].min()
    assert extent[3] > points[:, 1].max()


@pytest.mark.parametrize("comparison", [False, True])
def test_codes_are_written_in_stored_order(comparison, tmp_path):
    module = Comparison(2, {"a": lambda d_in: sae(), "b": lambda d_in: sae(TopKSAE, k=2)}) if comparison else sae()
    source = data()
    trainer(tmp_path, CodesWriter()).predict(module, source, return_predictions=False)
    trainer(tmp_path, CodesWriter(str(tmp_path / "there")), logger=False).predict(
        module, source, return_predictions=False
    )
    samples = source.split("test")
    for name, one in module.saes().items():
        for root in (tmp_path, tmp_path / "there"):
            folder = root / "members" / name if name else root
            codes, concepts = load_codes(folder / "codes.safetensors")
            with torch.no_grad():
                expected = one.encode(samples.activations)
            torch.testing.assert_close(codes.to_dense(), expected, rtol=1e-5, atol=1e-6)
            assert codes.values().numel() == (expected != 0).sum()
            assert torch.equal(concepts, samples.concepts)


def test_results_keep_what_other_commands_wrote(tmp_path):
    module, source = sae(), data()
    run = trainer(tmp_path, ConceptRecovery(), ResultsWriter({"note": [1, None]}))
    run.fit(module, source)
    run.validate(module, source, verbose=False)
    run.test(module, source, verbose=False)
    found = load_results(tmp_path / "results.json")
    assert set(found) == {"model", "fit", "validate", "test"}
    assert found["model"]["init_args"]["d_sae"] == 16
    assert all(found[command]["config"] == {"note": [1, None]} for command in ("fit", "validate", "test"))
    assert all(key.startswith("test/") for key in found["test"]["metrics"])
    assert found["fit"]["samples_seen"] == 12 * 16
    assert not list(tmp_path.glob("*.tmp"))


def test_values_that_are_not_finite_are_null(tmp_path):
    class Bad(pl.Callback):
        def on_test_epoch_end(self, trainer, pl_module):
            pl_module.log("test/bad", torch.tensor(float("nan")))
            pl_module.log("test/worse", torch.tensor(float("inf")))

    trainer(tmp_path, Bad(), ResultsWriter({"limit": math.inf})).test(sae(), data(), verbose=False)
    assert load_results(tmp_path / "results.json")["test"]["config"] == {"limit": "inf"}
    text = (tmp_path / "results.json").read_text()
    metrics = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["test"]["metrics"]
    assert metrics["test/bad"] is None
    assert metrics["test/worse"] is None
