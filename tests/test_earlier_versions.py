"""Files of earlier versions: checkpoints load, are tested and go on, caches are read (tests/fixtures/README.md)."""

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sae_lightning import load_results
from sae_lightning.moved import current
from sae_lightning.run.checkpoint import read_checkpoint
from tests.fixtures import make
from tests.helpers.runs import contents, run_cli

VERSIONS = sorted(path.name for path in make.FIXTURES.glob("v*"))
NO_FIGURES = ("--figures.max_saes", 0, "--receptive_fields.max_saes", 0)
RESUMED = ("topk", "spade", "comparison")


@pytest.fixture(params=VERSIONS)
def folder(request, tmp_path, monkeypatch):
    """A copy of the files of one version, in which commands run: configurations name their files from there."""
    found = shutil.copytree(make.FIXTURES / request.param, tmp_path / "files")
    monkeypatch.chdir(found)
    return found


NEW = {"gamma_warmup": 0}
"""Arguments that models have been given since, with the values that change nothing."""


def as_then(value):
    """A description without the arguments that are new, which must have the values that change nothing."""
    if not isinstance(value, dict):
        return value
    assert all(value[name] == NEW[name] for name in value.keys() & NEW.keys())
    return {name: as_then(item) for name, item in value.items() if name not in NEW}


def run(*args):
    outcome = run_cli(*args)
    assert outcome.code == 0, outcome.err[-3000:]
    return outcome


def made(name):
    """Skip what a version did not make."""
    if not Path("runs", name).exists():
        pytest.skip(f"this version made no run {name!r}")


def checkpoint(name, step=make.END):
    return Path("runs", name, "checkpoints", f"step={step}.ckpt")


def test_there_are_files_of_a_version():
    assert VERSIONS


@pytest.mark.parametrize("name", make.RUNS)
def test_what_was_trained_loads_and_computes_what_it_did(name, folder):
    made(name)
    found = make.outputs(name, checkpoint(name), load_file("inputs.safetensors"))
    expected = load_file(f"runs/{name}/outputs.safetensors")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("name", make.RUNS)
def test_what_was_trained_is_tested_with_the_results_of_then(name, folder):
    made(name)
    config = f"runs/{name}/config.yaml"
    expected = load_results(f"runs/{name}/results.json")
    outcome = run("test", "-c", config, "--ckpt_path", checkpoint(name), "--run_dir", "tested", *NO_FIGURES)
    assert not [text for text in outcome.warnings if "hyperparameters" in text]
    found = load_results("tested/results.json")
    assert as_then(found["model"]) == current(expected["model"])
    assert found["test"]["samples_seen"] == expected["test"]["samples_seen"]
    losses = {key: value for key, value in expected["test"]["metrics"].items() if key.endswith(("test/loss", "nmse"))}
    assert losses
    for key, value in losses.items():
        assert found["test"]["metrics"][key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize("name", RESUMED)
def test_training_goes_on_from_the_middle_and_ends_as_it_did(name, folder):
    made(name)
    run("fit", "-c", f"runs/{name}/config.yaml", "--ckpt_path", checkpoint(name, make.MIDDLE), "--run_dir", "resumed")
    expected = read_checkpoint(checkpoint(name))
    found = read_checkpoint("resumed/checkpoints/last.ckpt")
    assert found["global_step"] == expected["global_step"] == make.END
    assert found["sae_lightning"]["samples_seen"] == expected["sae_lightning"]["samples_seen"]
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    for key, value in expected["state_dict"].items():  # on another processor, sums may be rounded otherwise
        torch.testing.assert_close(
            found["state_dict"][key], value, rtol=1e-5, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}"
        )


def test_a_cache_is_read_and_trained_on(folder):
    pytest.importorskip("litdata")
    found, expected = make.cached(), load_file("cached.safetensors")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key
    args = ["--model", "TopKSAE", "--model.k", 3, "--model.n_init_samples", 64, *make.CACHED, "--model.d_sae", 12]
    run("fit", *args, *make.TRAINER, "--run_dir", "trained")
    assert read_checkpoint("trained/checkpoints/last.ckpt")["global_step"] == make.END


def test_a_harvest_knows_that_a_cache_is_complete(folder):
    pytest.importorskip("transformers")
    before = contents(folder / "cache")
    times = {path: path.stat().st_mtime_ns for path in (folder / "cache").rglob("*.bin")}
    outcome = run("harvest", *make.HARVEST)
    assert "cache: " in outcome.out
    assert contents(folder / "cache") == before
    assert {path: path.stat().st_mtime_ns for path in times} == times
