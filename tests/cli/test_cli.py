"""The command line, end to end: what it writes, what it says, and what it refuses."""

import functools
import inspect
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jsonargparse
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import sae_lightning
from sae_lightning import Comparison, SeparabilityDataModule, callbacks, load_codes, load_module, load_sae
from sae_lightning.cli import main
from sae_lightning.cli.parser import DATA, MODELS
from sae_lightning.run.checkpoint import read_checkpoint
from tests.helpers.runs import (
    BATCH_SIZE,
    DATA_ARGS,
    EXPERIMENTS,
    MEMBERS,
    MODEL,
    ROOT,
    STEPS,
    TINY,
    TRAINER,
    contents,
    fast,
    last,
    process_environment,
    refused,
    results,
    rows,
    run_cli,
    run_process,
)

CLASSES = {"spade": "SpaDE", "relu": "ReLUSAE", "jumprelu": "JumpReLUSAE", "topk": "TopKSAE"}
CONCEPTS = [f"C{i}" for i in range(6)]
FAST_DATA = {"n_per_concept": 5000, "n_val_per_concept": 100, "n_test_per_concept": 100}  # configs/debug/fast.yaml

STREAM = ["--data", "tests.helpers.probes.DamagedStream"]


def fit(run_dir, *args):
    outcome = run_cli("fit", *TINY, "--run_dir", run_dir, *args)
    assert outcome.code == 0, outcome.err[-3000:]
    return outcome


# ---------------------------------------------------------------------- what a run leaves behind


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in ("compare", "spade") else pytest.mark.slow) for n in EXPERIMENTS]
)
def test_a_run_folder_holds_what_is_documented(name, experiment):
    run_dir = experiment(name)
    files = set(contents(run_dir))
    members = MEMBERS if name == "compare" else ("",)
    assert {"metrics.csv", "config.yaml", "config-test.yaml", "results.json", "results.md"} <= files
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt", f"step={STEPS}.ckpt"}
    assert {f"figures/{stage}/concept_f1.png" for stage in ("val", "test")} <= files
    for member in members:
        folder = Path("members", member) if member else Path()
        for stage, figures in {
            "val": ("latent_similarity",),
            "test": ("latent_similarity", "code_similarity", "receptive_fields"),
        }.items():
            assert {str(Path("figures", member, stage, f"{figure}.png")) for figure in figures} <= files
        assert str(folder / "codes.safetensors") in files
        assert any(file.startswith(str(folder / "events.out.tfevents")) for file in files)
    assert not [file for file in files if file.endswith((".tmp", ".lock"))]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_metrics_csv_has_rows_of_every_stage(name, experiment):
    table = rows(experiment(name))
    for member in MEMBERS if name == "compare" else ("",):
        for stage, steps in {"train": [4, 9, 14, 19], "val": [9, 19, 20], "test": [20]}.items():
            column = f"{member}/{stage}/loss".removeprefix("/")
            assert sorted({int(row["step"]) for row in table if row[column]} - {0}) == steps or stage != "train"
            assert {int(row["step"]) for row in table if row[column]} <= {*steps, 0}
            assert all(np.isfinite(float(row[column])) for row in table if row[column])
        column = f"{member}/train/lr".removeprefix("/")
        assert len([row for row in table if row.get(column)]) == 4


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_results_json_describes_the_run(name, experiment):
    run_dir = experiment(name)
    found = results(run_dir)
    assert set(found) == {"model", "fit", "validate", "test"}
    module = load_module(last(run_dir))
    assert found["model"] == json.loads(json.dumps(module.describe()))
    assert found["model"]["class_path"].endswith("Comparison" if name == "compare" else CLASSES[name])
    for command, stage in {"fit": "val", "validate": "val", "test": "test"}.items():
        entry = found[command]
        assert entry["seed"] == 0
        assert entry["steps"] == (STEPS if command == "fit" else entry["steps"])
        assert entry["samples_seen"] == STEPS * BATCH_SIZE
        assert entry["processes"] == 1
        assert entry["precision"] == "32-true"
        assert 0 < entry["wall_time_seconds"] < 100
        assert entry["versions"]["torch"] == torch.__version__
        assert entry["versions"]["sae_lightning"] == sae_lightning.__version__
        assert entry["config"]["data"]["init_args"]["n_per_concept"] == FAST_DATA["n_per_concept"]
        assert entry["config"]["run_dir"] == str(run_dir)
        keys = entry["metrics"].keys()
        for member in MEMBERS if name == "compare" else ("",):
            prefix = f"{member}/{stage}/".removeprefix("/")
            per_concept = [f"f1/{concept}" for concept in CONCEPTS] + [f"nmse/{concept}" for concept in CONCEPTS]
            scalars = ["loss", "mse", "l0", "nmse", "dead_latents", "f1", "monosemanticity"]
            scalars += ["stable_rank_codes", "stable_rank_latents", *per_concept]
            assert {prefix + key for key in scalars} <= keys
            assert (prefix + "discovery_rand" in keys) == (stage == "test")
        assert all(f"/{stage}/" in f"/{key}" for key in keys)
    # validation anew gives the numbers of the end of training: the weights are those of the last step
    assert found["validate"]["metrics"] == pytest.approx(found["fit"]["metrics"], rel=1e-6)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_predict_writes_the_codes_of_the_test_split(name, experiment):
    run_dir = experiment(name)
    samples = SeparabilityDataModule(**FAST_DATA, seed=0).split("test")
    for member in MEMBERS if name == "compare" else (None,):
        codes, concepts = load_codes(run_dir / (f"members/{member}" if member else "") / "codes.safetensors")
        assert codes.layout == torch.sparse_csr
        assert torch.equal(concepts, samples.concepts)
        with torch.no_grad():
            expected = load_sae(last(run_dir), member).encode(samples.activations)
        torch.testing.assert_close(codes.to_dense(), expected, rtol=1e-5, atol=1e-6)
        assert codes.values().numel() < 0.5 * expected.numel() or name in ("relu", "jumprelu", "compare")


def test_the_last_step_is_kept_whatever_the_interval(tmp_path):
    fit(tmp_path / "run", "--checkpoint.every_n_steps", 4)
    folder = tmp_path / "run" / "checkpoints"
    assert {path.name for path in folder.iterdir()} == {"last.ckpt", "step=10.ckpt", "step=8.ckpt"}
    checkpoint = read_checkpoint(last(tmp_path / "run"))
    assert checkpoint["global_step"] == 10
    assert checkpoint["sae_lightning"]["samples_seen"] == 160


def test_a_run_folder_can_be_moved(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "moved", symlinks=True)
    assert torch.equal(load_sae(last(tmp_path / "moved")).sae.encoder.weight, load_sae(last(tiny)).sae.encoder.weight)


def test_the_saved_config_makes_the_same_run_again_and_leaves_the_first_one_alone(tiny, tmp_path):
    before = contents(tiny)
    outcome = run_cli("fit", "-c", tiny / "config.yaml", "--run_dir", tmp_path / "again")
    assert outcome.code == 0, outcome.err[-2000:]
    assert contents(tiny) == before
    first, again = read_checkpoint(last(tiny)), read_checkpoint(last(tmp_path / "again"))
    assert all(torch.equal(again["state_dict"][key], value) for key, value in first["state_dict"].items())
    # and without another folder it asks first
    refused(run_cli("fit", "-c", tiny / "config.yaml"), "exists already")
    assert contents(tiny) == before


def test_another_seed_makes_another_run(tiny, tmp_path):
    fit(tmp_path / "run", "--seed_everything", 1)
    first, other = load_sae(last(tiny)), load_sae(last(tmp_path / "run"))
    assert not torch.equal(first.sae.encoder.weight, other.sae.encoder.weight)
    assert results(tmp_path / "run")["fit"]["seed"] == 1


def test_without_a_run_dir_each_run_has_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_cli("fit", *TINY).code == 0
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"\d{8}-\d{6}-SpaDE", run_dir.name)
    # the checkpoint's run is the default of the other commands
    assert run_cli("test", *TINY, "--ckpt_path", last(run_dir)).code == 0
    assert {"fit", "test"} <= results(run_dir).keys()
    assert list((tmp_path / "runs").iterdir()) == [run_dir]


def test_two_runs_in_one_process_do_not_share_a_default_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    times = iter(["20260101-000000", "20260101-000001"])
    monkeypatch.setattr("sae_lightning.cli.run_folder.time.strftime", lambda *args: next(times))
    for _ in range(2):
        main(["fit", *map(str, TINY)])
    assert len(list((tmp_path / "runs").iterdir())) == 2


def test_fast_dev_run_writes_nothing(tmp_path):
    run_dir = tmp_path / "run"
    outcome = run_cli("fit", *TINY, "--run_dir", run_dir, "--trainer.fast_dev_run", "true")
    assert outcome.code == 0, outcome.err[-2000:]
    assert not run_dir.exists()


def test_switches_of_the_trainer_are_respected(tmp_path):
    run_dir = tmp_path / "run"
    args = ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false"]
    args += ["--trainer.enable_progress_bar", "false"]
    assert run_cli("fit", *TINY, "--run_dir", run_dir, *args).code == 0
    assert contents(run_dir).keys() <= {"config.yaml"}
    run_dir = tmp_path / "barebones"
    args = ["--trainer.max_steps", 10, "--trainer.barebones", "true"]
    outcome = run_cli("fit", *MODEL, *DATA_ARGS, *args, "--run_dir", run_dir)
    assert outcome.code == 0, outcome.err[-2000:]


def test_composed_saes_and_callbacks_come_from_the_command_line(tmp_path):
    run_dir = tmp_path / "run"
    model = ["--model", "ComposedSAE", "--model.d_sae", 8, "--model.encoder", "sae_lightning.nn.Affine"]
    model += ["--model.projection", "sae_lightning.nn.KSparse", "--model.projection.k", 3]
    model += ["--model.regularizer", "sae_lightning.nn.L1", "--model.n_init_samples", 64]
    args = [*model, *DATA_ARGS, *TRAINER, "--run_dir", run_dir]
    resample = ["--trainer.callbacks+=ResampleDeadLatents", "--trainer.callbacks.every_n_steps", 5]
    outcome = run_cli("fit", *args, *resample)
    assert outcome.code == 0, outcome.err[-3000:]
    for key in ("train/loss", "train/resampled_latents"):
        assert [row[key] for row in rows(run_dir) if row.get(key)], key
    outcome = run_cli("test", *args, "--ckpt_path", last(run_dir))
    assert outcome.code == 0, outcome.err[-3000:]
    assert not [warning for warning in outcome.warnings if "replace" in warning]
    assert results(run_dir)["test"]["metrics"]["test/l0"] <= 3
    codes = load_sae(last(run_dir)).encode(torch.randn(50, 2))
    assert (codes != 0).sum(-1).max() <= 3


def test_num_threads_reaches_torch(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    fit(tmp_path / "run", "--num_threads", 2)
    assert seen[0] == 2


@pytest.mark.slow
def test_the_figure_config_runs(tmp_path):
    run_dir = tmp_path / "figure"
    args = [*fast("figure", run_dir), "--trainer.max_steps", 3, "--trainer.log_every_n_steps", 1]
    assert run_cli("fit", *args).code == 0
    outcome = run_cli("test", *args, "--ckpt_path", last(run_dir))
    assert outcome.code == 0, outcome.err[-2000:]
    assert len(load_module(last(run_dir)).saes()) == 40
    metrics = results(run_dir)["test"]["metrics"]
    assert len([key for key in metrics if key.endswith("/test/f1")]) == 40
    assert {"figures/test/f1_against_l0.png", "figures/test/metrics_against_l0.png"} <= contents(run_dir).keys()


# ---------------------------------------------------------------------- checkpoints on the command line


def test_hyperparameters_of_a_checkpoint_win_and_what_they_replace_is_said(tiny, tmp_path):
    args = ["--ckpt_path", last(tiny), "--run_dir", tmp_path / "test"]
    outcome = run_cli("test", *TINY, *args, "--model.d_sae", 5, "--model.gamma", 0.5)
    assert outcome.code == 0, outcome.err[-2000:]
    (warning,) = [text for text in outcome.warnings if "replace" in text]
    assert "d_sae: 8 (given: 5)" in warning
    assert "gamma: 0.01 (given: 0.5)" in warning
    assert "init" not in warning
    assert results(tmp_path / "test")["model"] == results(tiny)["model"]


@pytest.mark.slow
def test_members_of_a_comparison_are_compared_too(experiment, tmp_path):
    run_dir = experiment("compare")
    args = [*fast("compare", tmp_path / "test"), "--ckpt_path", last(run_dir), "--figures.max_saes", 0]
    args += ["--receptive_fields.max_saes", 0]
    assert not [text for text in run_cli("validate", *args).warnings if "replace" in text]
    text = (ROOT / "configs/separability/compare.yaml").read_text()
    changed = tmp_path / "changed.yaml"
    changed.write_text(text.replace("k: 14", "k: 3"))
    outcome = run_cli("validate", *args, "-c", changed, "--run_dir", tmp_path / "test", "--data.n_per_concept", 5000)
    assert outcome.code == 0, outcome.err[-2000:]
    (warning,) = [text for text in outcome.warnings if "replace" in text]
    assert re.search(r"topk\S*k: 14 \(given: 3\)", warning)
    assert warning.count("(given: ") == 1
    assert results(tmp_path / "test")["model"] == results(run_dir)["model"]


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_a_checkpoint_needs_no_model_on_the_command_line(command, tiny, tmp_path):
    args = [*DATA_ARGS, *TRAINER, "--ckpt_path", last(tiny), "--run_dir", tmp_path / "other"]
    outcome = run_cli(command, *args)
    assert outcome.code == 0, outcome.err[-2000:]
    assert (tmp_path / "other" / f"config-{command}.yaml").is_file()


def test_resuming_goes_on_in_the_same_folder(tmp_path):
    run_dir = tmp_path / "run"
    fit(run_dir)
    before = rows(run_dir)
    assert [int(row["step"]) for row in before if row["train/loss"]] == [4, 9]
    outcome = run_cli("fit", *TINY, "--run_dir", run_dir, "--ckpt_path", last(run_dir), "--trainer.max_steps", 20)
    assert outcome.code == 0, outcome.err[-2000:]
    assert not [text for text in outcome.warnings if "replace" in text]
    after = rows(run_dir)
    for old, new in zip(before, after, strict=False):
        assert {key: value for key, value in new.items() if value} == {k: v for k, v in old.items() if v}
    assert len(after) > len(before)
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt", "step=10.ckpt", "step=20.ckpt"}
    assert read_checkpoint(last(run_dir))["global_step"] == 20
    assert results(run_dir)["fit"]["samples_seen"] == 20 * 16


def test_last_ckpt_is_the_newest_also_where_the_interval_changes(tmp_path):
    run_dir = tmp_path / "run"
    fit(run_dir, "--checkpoint.every_n_steps", 10)
    args = ["--run_dir", run_dir, "--ckpt_path", last(run_dir), "--trainer.max_steps", 20]
    assert run_cli("fit", *TINY, *args, "--checkpoint.every_n_steps", 7).code == 0
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt", "step=14.ckpt", "step=20.ckpt"}
    assert read_checkpoint(last(run_dir))["global_step"] == 20


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """Checkpoints and rows of a run of 20 steps, and of one that stopped at 10 or 13 and was resumed; made once."""
    return functools.cache(lambda model, ends: interrupt(tmp_path_factory.mktemp("interrupted"), model, ends))


def interrupt(tmp_path, model, ends):
    config = {
        "optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-2, "fused": True}},
        "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 20}},
        "d_sae": 8,
        "n_init_samples": 64,
    }
    described = {"class_path": "SpaDE", "init_args": config}
    if model == "Comparison":
        described = {"class_path": "Comparison", "init_args": {"members": {"spade": described}}}
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"model": described}))
    args = ["fit", "-c", tmp_path / "model.yaml", *DATA_ARGS, *TRAINER, "--trainer.log_every_n_steps", 2]
    # the checkpoint is that of the end of training in one case, and one of several in the other
    args += ["--checkpoint.every_n_steps", 7 if ends == "at max_steps" else 10, "--trainer.val_check_interval", 5]
    args += ["--trainer.check_val_every_n_epoch", "null"]

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run_cli(*args, "--run_dir", whole, "--trainer.max_steps", 20).code == 0
    if ends == "at max_steps":
        assert run_cli(*args, "--run_dir", parts, "--trainer.max_steps", 10).code == 0
    else:
        fail = ["--trainer.callbacks+=tests.helpers.probes.FailAt", "--trainer.callbacks.step", 13]
        with pytest.raises(RuntimeError, match="the power went out"):
            run_cli(*args, "--run_dir", parts, "--trainer.max_steps", 20, *fail)
    assert read_checkpoint(last(parts))["global_step"] == 10
    outcome = run_cli(*args, "--run_dir", parts, "--ckpt_path", last(parts), "--trainer.max_steps", 20)
    assert outcome.code == 0, outcome.err[-2000:]
    return [(read_checkpoint(last(run)), rows(run)) for run in (whole, parts)]


INTERRUPTIONS = pytest.mark.parametrize("ends", ["at max_steps", "in a crash"])
KINDS = pytest.mark.parametrize("model", ["SpaDE", "Comparison"])


@INTERRUPTIONS
@KINDS
def test_a_resumed_run_keeps_optimizer_and_schedule(model, ends, interrupted):
    (first, _), (second, _) = interrupted(model, ends)
    assert second["global_step"] == first["global_step"] == 20
    assert second["sae_lightning"] == first["sae_lightning"]
    assert str(second["lr_schedulers"]) == str(first["lr_schedulers"])
    groups = [state["param_groups"] for state in (first["optimizer_states"][0], second["optimizer_states"][0])]
    assert groups[1] == groups[0]


@INTERRUPTIONS
def test_a_resumed_run_logs_each_step_under_its_own_number(ends, interrupted):
    (_, whole), (_, parts) = interrupted("SpaDE", ends)
    rates = [{int(row["step"]): row["train/lr"] for row in table if row["train/lr"]} for table in (whole, parts)]
    assert rates[1] == rates[0]
    steps = [sorted({int(row["step"]) for row in table if row["val/loss"]}) for table in (whole, parts)]
    assert steps == [[4, 9, 14, 19]] * 2


@INTERRUPTIONS
@KINDS
def test_a_resumed_run_sees_the_samples_and_ends_with_the_weights_of_an_uninterrupted_one(model, ends, interrupted):
    (first, _), (second, _) = interrupted(model, ends)
    for key, value in first["state_dict"].items():
        assert torch.equal(second["state_dict"][key], value), key


# ---------------------------------------------------------------------- help


def test_both_ways_to_start_give_the_same_help():
    script = Path(sys.executable).with_name("sae-lightning")
    commands = [sys.executable, "-m", "sae_lightning", "--help"], [str(script), "--help"]
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=process_environment()
        )
        for command in commands
    ]
    texts = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert texts[0][0] == texts[1][0]
    for word in ("fit", "validate", "test", "predict"):
        assert re.search(rf"^\s+{word}\s", texts[0][0], re.MULTILINE)


def documented(cls):
    """Arguments with their meaning, from the section `Args:` of a docstring."""
    told = {}
    for doc in (inspect.getdoc(cls.__init__), inspect.getdoc(cls)):  # the first has those of `**shared`
        section = re.search(r"^Args:\n(.*?)(?:\n\n|\Z)", doc or "", re.DOTALL | re.MULTILINE)
        entries = re.findall(
            r"^    (\w+): (.*?)(?=^    [\w*]|\Z)", section.group(1) if section else "", re.DOTALL | re.MULTILINE
        )
        told |= {name: " ".join(text.split()) for name, text in entries}
    return told


@pytest.mark.parametrize("command", ["fit", "test"])
def test_help_names_every_argument_with_its_meaning(command):
    outcome = run_cli(command, "--help")
    assert outcome.code == 0
    text = outcome.out
    for group, classes in (("model", MODELS), ("data", DATA)):
        for cls in classes:
            meaning = documented(cls)
            expected = {name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "d_in")}
            assert expected <= meaning.keys(), cls
            section = text.split(f"--{group} {cls.__name__}: ")[1].split("\n\n")[0]
            for name in expected:
                entry = section.split(f"--{group}.{name}\n")[1].split(f"  --{group}.")[0]
                assert meaning[name] in " ".join(entry.split()), f"{cls.__name__}.{name}"
    squeezed = " ".join(text.split())
    for group, cls in {
        "checkpoint": callbacks.RunCheckpoint,
        "recovery": callbacks.ConceptRecovery,
        "figures": callbacks.RecoveryFigures,
        "receptive_fields": callbacks.ReceptiveFields,
        "table": callbacks.RecoveryTable,
        "dynamics": callbacks.TrainingDynamics,
        "codes": callbacks.CodesWriter,
        "progress": callbacks.SAEProgressBar,
    }.items():
        for name, meaning in documented(cls).items():
            assert f"--{group}.{name}" in squeezed
            assert meaning.rstrip(".") in squeezed, f"{group}.{name}"
    for name in ("run_dir", "overwrite", "allow_changed_data", "num_threads", "ckpt_path"):
        assert f"--{name} " in text


# ---------------------------------------------------------------------- wrong input

WRONG = {
    "negative gamma": (["--model.gamma", -1], ["gamma must be at least 0", "-1"]),
    "gamma nan": (["--model.gamma", ".nan"], ["gamma must be at least 0", "nan"]),
    "no latents": (["--model.d_sae", 0], ["d_sae must be at least 1", "0"]),
    "k above d_sae": (["--model", "TopKSAE", "--model.d_sae", 8, "--model.k", 9], ["k must", "d_sae = 8", "9"]),
    "both lambda and l0": (["--model.lambda_init", 1, "--model.l0_init", 2], ["lambda_init or l0_init", "1.0", "2.0"]),
    "type of d_sae": (["--model.d_sae", "many"], ["d_sae", "many"]),
    "unknown precision": (["--trainer.precision", "7-bit"], ["trainer.precision", "bf16-mixed", "7-bit"]),
    "unknown model": (["--model", "GatedSAE"], ["model", "GatedSAE", *[cls.__name__ for cls in MODELS]]),
    "unknown data": (["--data", "ImageNet"], ["data", "ImageNet", *[cls.__name__ for cls in DATA]]),
    "unknown argument": (["--d_sae", 8], ["--d_sae"]),
    "unknown model argument": (["--model.k", 3], ["k"]),
    "no threads": (["--num_threads", 0], ["num_threads must be at least 1", "0"]),
    "top_n": (["--recovery.top_n", 0], ["top_n must be at least 1", "0"]),
    "every_n_steps": (["--checkpoint.every_n_steps", 0], ["every_n_steps must be at least 1", "0"]),
    "resolution": (["--receptive_fields.resolution", 1], ["resolution must be at least 2", "1"]),
    "silent_after": (["--dynamics.silent_after", 0], ["silent_after must be at least 1", "0"]),
    "held-out points": (["--data.n_val_per_concept", 500], ["n_val_per_concept", "500"]),
    "batch_size": (["--data.batch_size", 0], ["batch_size must be at least 1", "0"]),
    "scheduler": (
        ["--model.lr_scheduler", "torch.optim.lr_scheduler.CosineAnnealingLR"],
        ["T_max"],
    ),
    "missing config": (["-c", "no/such/file.yaml"], ["no/such/file.yaml"]),
    "devices": (["--trainer.accelerator", "cpu", "--trainer.devices", 0], ["devices", "0"]),
    "accelerator": (["--trainer.accelerator", "abacus"], ["accelerator", "abacus"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_arguments_end_with_a_message_and_touch_nothing(case, tmp_path):
    args, words = WRONG[case]
    # an earlier run that may be overwritten: also this must outlive a mistake
    earlier = tmp_path / "earlier"
    (earlier / "checkpoints").mkdir(parents=True)
    (earlier / "config.yaml").write_text("model: {}\n")
    last(earlier).write_bytes(b"weights")
    before = contents(earlier)
    outcome = run_cli("fit", *TINY, "--run_dir", earlier, "--overwrite", "true", *args)
    refused(outcome, *words)
    assert contents(earlier) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_accelerator_is_said_without_a_traceback(tmp_path):
    outcome = run_cli("fit", *TINY, "--run_dir", tmp_path / "run", "--trainer.accelerator", "gpu")
    refused(outcome, "gpu")
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_make_no_folder(tmp_path):
    refused(run_cli("fit", *TINY, "--run_dir", tmp_path / "run", "--model.gamma", -1), "gamma must be at least 0")
    assert list(tmp_path.iterdir()) == []


def test_the_message_about_a_wrong_value_is_short(tmp_path):
    message = refused(run_cli("fit", *TINY, "--run_dir", tmp_path / "run", "--model.gamma", -1), "gamma")
    assert message.count("gamma must be at least 0 and finite, but is -1") == 1


def test_missing_parts_are_named(tmp_path):
    refused(run_cli("fit", *MODEL, *TRAINER, "--run_dir", tmp_path / "run"), "data")
    refused(run_cli("fit", *DATA_ARGS, *TRAINER, "--run_dir", tmp_path / "run"), "model")
    refused(run_cli("nothing"), "there is no command 'nothing'")


def test_an_existing_run_is_kept_or_replaced_as_asked(tmp_path):
    run_dir = tmp_path / "run"
    fit(run_dir)
    (run_dir / "notes.txt").write_text("mine")
    before = contents(run_dir)
    refused(run_cli("fit", *TINY, "--run_dir", run_dir), str(run_dir), "exists already", "--overwrite")
    assert contents(run_dir) == before
    fit(run_dir, "--overwrite", "true", "--trainer.max_steps", 5)
    assert "notes.txt" not in contents(run_dir)
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt", "step=5.ckpt"}
    assert len([row for row in rows(run_dir) if row["train/loss"]]) == 1


@pytest.mark.parametrize("kind", ["folder of something else", "file"])
@pytest.mark.parametrize("name", ["chapter-1.txt", "probe", "probe_weights.npy", ".config.yaml.orig"])
def test_overwrite_deletes_runs_only(kind, name, tmp_path):
    target = tmp_path / "thesis"
    if kind == "file":
        target.write_text("ten years")
    else:
        target.mkdir()
        (target / name).write_text("ten years")
    refused(run_cli("fit", *TINY, "--run_dir", target, "--overwrite", "true"), str(target))
    assert (target if kind == "file" else target / name).read_text() == "ten years"


def test_an_empty_folder_is_as_good_as_a_new_one(tmp_path):
    fit(tmp_path)
    assert last(tmp_path).is_file()


def test_a_checkpoint_does_not_open_the_folder_of_another_run(tiny, tmp_path):
    other = tmp_path / "other"
    fit(other, "--trainer.max_steps", 5)
    before = contents(other)
    args = ["--run_dir", other, "--ckpt_path", last(tiny), "--trainer.max_steps", 20]
    refused(run_cli("fit", *TINY, *args), str(other))
    assert contents(other) == before


@pytest.mark.parametrize(
    ("command", "how"),
    [
        *((command, "-c FILE") for command in ("fit", "test", "harvest", "diagnose")),
        *(("fit", how) for how in ("--config=FILE", "-c OTHER", "--trainer FILE", "--model FILE")),
    ],
)
def test_a_config_that_is_not_utf8_is_named(command, how, tmp_path):
    config, other = tmp_path / "mine.yaml", tmp_path / "other.yaml"
    config.write_bytes(b"# good\nseed: 0  # caf\xe9\n")
    other.write_text("trainer: mine.yaml\n")
    arguments = how.replace("FILE", str(config)).replace("OTHER", str(other)).split()
    refused(run_cli(command, *arguments), f"'{config}' must be UTF-8, but its byte 21 (in line 2) is not")


def test_a_config_is_read_as_utf8_and_as_before_in_python(tmp_path):
    read = jsonargparse.Path.read_text
    (tmp_path / "mine.yaml").write_text("# café 日本\nmodel: {class_path: Nothing}\n", encoding="utf-8")
    refused(run_cli("fit", "-c", tmp_path / "mine.yaml"), "Nothing")
    assert jsonargparse.Path.read_text is read


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_commands_that_need_weights_ask_for_them(command, tmp_path):
    refused(run_cli(command, *TINY, "--run_dir", tmp_path / "run"), "--ckpt_path", command)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize("kind", ["missing", "truncated", "empty", "foreign", "pickle", "folder"])
def test_bad_checkpoints_are_refused(kind, command, tiny, tmp_path):
    path = tmp_path / "bad.ckpt"
    words = [str(path)]
    if kind == "truncated":
        path.write_bytes(last(tiny).read_bytes()[:-1000])
        words.append("cannot be read")
    elif kind == "empty":
        path.write_bytes(b"")
        words.append("cannot be read")
    elif kind == "foreign":
        torch.save({"state_dict": {}, "global_step": 1}, path)
        words.append("was not made by sae_lightning")
    elif kind == "pickle":
        torch.save({"sae_lightning": Path("/etc/passwd")}, path)  # an object that weights_only does not allow
        words.append("cannot be read")
    elif kind == "folder":
        path.mkdir()
    before = contents(tmp_path)
    refused(run_cli(command, *TINY, "--run_dir", tmp_path / "run", "--ckpt_path", path), *words)
    assert contents(tmp_path) == before


def test_a_checkpoint_of_another_class_is_refused(tiny, experiment, tmp_path):
    args = [*DATA_ARGS, *TRAINER, "--run_dir", tmp_path / "run", "--ckpt_path"]
    outcome = run_cli("test", "--model", "TopKSAE", "--model.d_sae", 8, *args, last(tiny))
    refused(outcome, "SpaDE", "TopKSAE", "--ckpt_path")
    refused(run_cli("test", *MODEL, *args, last(experiment("compare"))), "SpaDE", "Comparison")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_for_other_data_is_refused(tiny, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((100, 3), dtype=np.float32))
    args = ["--data", "TensorDataModule", "--data.path", tmp_path / "x.npy", *TRAINER, "--run_dir", tmp_path / "run"]
    refused(run_cli("test", *MODEL, *args, "--ckpt_path", last(tiny)), "d_in", "2", "3")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((10, 2, 2), np.float32), ["two dimensions", "3"]),
        (np.zeros(10, np.float32), ["two dimensions", "1"]),
        (np.zeros((10, 2), np.int64), ["floating-point", "int64"]),
        (np.array([[1, 2], [3, np.nan], [4, 5]], np.float32), ["finite", "nan", "row 1, feature 1"]),
        (None, ["x.npy"]),
    ],
    ids=["rank 3", "rank 1", "integers", "nan", "missing"],
)
def test_bad_files_are_refused(array, words, tmp_path):
    path = tmp_path / "x.npy"
    if array is not None:
        np.save(path, array)
    outcome = run_cli(
        "fit", *MODEL, "--data", "TensorDataModule", "--data.path", path, *TRAINER, "--run_dir", tmp_path / "run"
    )
    refused(outcome, "x.npy", *words)
    assert not (tmp_path / "run").exists()


def test_too_little_training_data_is_refused(tmp_path):
    """Found when training starts, so it may end with a traceback, but it names argument, rule and value."""
    try:
        outcome = run_cli("fit", *TINY, "--data.batch_size", 5000, "--run_dir", tmp_path / "run")
    except ValueError as error:
        message = str(error)
    else:
        message = refused(outcome)
    assert "batch_size" in message
    assert "5000" in message
    assert "840" in message


# ---------------------------------------------------------------------- damaged streams


def test_a_nan_in_the_training_stream_stops_the_run_and_spares_the_last_checkpoint(tmp_path):
    run_dir = tmp_path / "run"
    args = [*MODEL, *STREAM, *TRAINER, "--trainer.max_steps", 30, "--checkpoint.every_n_steps", 5]
    done = run_process("fit", *args, "--run_dir", run_dir, check=False)
    assert done.returncode != 0
    message = "activations must be finite, but batch 14 of the training stream holds nan at row 5, feature 2"
    assert message in done.stderr
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt", "step=10.ckpt", "step=5.ckpt"}
    assert read_checkpoint(last(run_dir))["global_step"] == 10
    sae = load_sae(last(run_dir))
    assert all(value.isfinite().all() for value in sae.state_dict().values())
    assert [int(row["step"]) for row in rows(run_dir) if row["train/loss"]] == [4, 9]
    assert all(np.isfinite(float(row["train/loss"])) for row in rows(run_dir))


@pytest.mark.parametrize(
    ("split", "command", "words"),
    [
        ("train", "fit", "batch 1 of the training stream"),
        ("val", "fit", "batch 1 of the validation stream"),
        ("test", "test", "batch 1 of the test stream"),
        ("test", "predict", "batch 1 of the prediction stream"),
    ],
)
def test_nans_anywhere_name_their_batch(split, command, words, tmp_path):
    run_dir = tmp_path / "run"
    stream = [*STREAM, "--data.n_batches", 4]
    bad = ["--data.bad_batch", 1, "--data.bad_split", split]
    args = [*MODEL, *stream, *TRAINER, "--trainer.max_steps", 4, "--run_dir", run_dir]
    if command != "fit":
        assert run_cli("fit", *args, "--data.bad_batch", -1).code == 0
        args += ["--ckpt_path", last(run_dir)]
    outcome = run_cli(command, *args, *bad)
    assert outcome.code == 1
    assert f"error: activations must be finite, but {words} holds nan at row 5, feature 2; the batch is" in outcome.err
    assert "Traceback" not in outcome.err
    (file,) = run_dir.glob("nonfinite-*.safetensors")
    assert load_file(file)["activations"][5, 2].isnan()


def test_a_stream_without_nan_trains(tmp_path):
    args = [*MODEL, *STREAM, *TRAINER, "--data.bad_batch", -1, "--trainer.max_steps", 30]
    assert run_cli("fit", *args, "--run_dir", tmp_path / "run").code == 0
    assert isinstance(load_module(last(tmp_path / "run")), sae_lightning.SpaDE)
    assert not isinstance(load_module(last(tmp_path / "run")), Comparison)
