"""bf16-mixed on the CPU finds what 32-true finds, and keeps float32 weights."""

import json

import pytest
import torch

from sae_lightning.modules.loading import read_checkpoint
from tests.conftest import CONFIGS, QUIET, run_cli

STEPS = 400


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """compare.yaml for 400 steps in both precisions, tested."""
    folder = tmp_path_factory.mktemp("precision")
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        run_dir = folder / precision
        args = ["-c", CONFIGS / "separability" / "compare.yaml", *QUIET, "--run_dir", run_dir]
        args += ["--trainer.max_steps", STEPS, "--trainer.val_check_interval", STEPS, "--trainer.precision", precision]
        args += ["--trainer.accelerator", "cpu", "--data.n_per_concept", 20_000, "--figures.on_validation", "false"]
        args += ["--figures.max_saes", 0, "--receptive_fields.max_saes", 0]
        assert run_cli("fit", *args).code == 0
        checkpoint = run_dir / "checkpoints" / "last.ckpt"
        assert run_cli("test", *args, "--ckpt_path", checkpoint).code == 0
        found[precision] = json.loads((run_dir / "results.json").read_text()), read_checkpoint(checkpoint)
    return found


def test_both_precisions_were_used(runs):
    for precision, (results, _) in runs.items():
        assert results["fit"]["precision"] == results["test"]["precision"] == precision
        assert results["fit"]["steps"] == STEPS
    exact, mixed = (checkpoint["state_dict"] for _, checkpoint in runs.values())
    assert not any(torch.equal(exact[key], mixed[key]) for key in exact if key.endswith("weight"))


def test_spade_finds_the_same_concepts(runs):
    exact, mixed = (results["test"]["metrics"] for results, _ in runs.values())
    keys = [f"spade/test/f1{concept}" for concept in ("", *(f"/C{i}" for i in range(6)))]
    assert {key: mixed[key] - exact[key] for key in keys if abs(mixed[key] - exact[key]) >= 0.02} == {}
    assert exact["spade/test/f1"] > 0.8


@pytest.mark.parametrize("member", ["spade", "relu", "jumprelu", "topk"])
def test_every_sae_trains_in_both_precisions(runs, member):
    exact, mixed = (results["test"]["metrics"] for results, _ in runs.values())
    assert mixed[f"{member}/test/nmse"] < 0.5
    assert mixed[f"{member}/test/f1"] == pytest.approx(exact[f"{member}/test/f1"], abs=0.1)
    assert mixed[f"{member}/test/l0"] == pytest.approx(exact[f"{member}/test/l0"], rel=0.3)


def test_weights_and_moments_stay_float32(runs):
    checkpoint = runs["bf16-mixed"][1]
    floating = {key: value for key, value in checkpoint["state_dict"].items() if value.is_floating_point()}
    assert {value.dtype for key, value in floating.items() if "recovery_metrics" not in key} == {torch.float32}
    states = [state for group in checkpoint["optimizer_states"][0].values() for state in group["state"].values()]
    assert states
    assert {value.dtype for state in states for value in state.values()} == {torch.float32}
