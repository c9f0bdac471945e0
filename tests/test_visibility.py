"""No trained latent sees more than the bound of its architecture says, in any of the project's experiments."""

import json
from pathlib import Path

import pytest

from tests.helpers.runs import CONFIGS, QUIET, ROOT, run_cli

STORED = sorted((ROOT / "notebooks" / "results").glob("*/visibility-seed*.json"))
EXPERIMENTS = {"separability", "heterogeneity", "formal_language", "language", "vision"}


def check(seen):
    """Each best F1 lies below the upper end of its bound's interval; how many there are."""
    pairs = [(row["concept"], sae, entry) for row in seen["concepts"] for sae, entry in row["saes"].items()]
    bounded = [(*names, entry) for *names, entry in pairs if entry["bound"] and entry["best_f1"] is not None]
    above = [pair for pair in bounded if pair[-1]["best_f1"] > pair[-1]["bound"]["high"]]
    assert not above, above
    return len(bounded)


def test_every_experiment_is_stored_at_three_seeds():
    found = {(path.parent.name, path.stem.removeprefix("visibility-seed")) for path in STORED}
    assert found == {(experiment, seed) for experiment in EXPERIMENTS for seed in "012"}


@pytest.mark.parametrize("path", STORED, ids=lambda path: f"{path.parent.name} {path.stem[-1]}")
def test_no_stored_latent_exceeds_its_bound(path: Path):
    assert check(json.loads(path.read_text())) >= 5 * 4


@pytest.mark.slow
def test_no_latent_exceeds_its_bound_in_a_run(tmp_path):
    run_dir, config = tmp_path / "run", CONFIGS / "separability" / "compare.yaml"
    args = ["-c", config, *QUIET, "--visibility.max_samples", 6000, "--run_dir", run_dir]
    steps = ["--trainer.max_steps", 300, "--trainer.val_check_interval", 300]
    assert run_cli("fit", *args, *steps).code == 0
    assert run_cli("test", *args, "--ckpt_path", run_dir / "checkpoints" / "last.ckpt").code == 0
    seen = json.loads((run_dir / "visibility.json").read_text())
    assert check(seen) == 6 * 4
    for row in seen["concepts"]:
        half_space = row["saes"]["relu"]["bound"]["f1"]
        if row["concept"] in ("C1", "C3", "C5"):  # within the triangle of the others
            assert half_space == pytest.approx(0.61, abs=0.02)
            assert row["saes"]["relu"]["state"] == "out of reach"
        else:
            assert half_space >= 0.99
        assert row["saes"]["spade"]["bound"]["f1"] >= 0.99
    metrics = json.loads((run_dir / "results.json").read_text())["test"]["metrics"]
    assert metrics["relu/test/bound/C1"] == pytest.approx(seen["concepts"][1]["saes"]["relu"]["bound"]["f1"], abs=1e-5)
