"""The grids of encoders and projections run through the CLI: fit, test and load."""

import json

import pytest
import torch

from sae_lightning import load_sae
from tests.helpers.runs import CONFIGS, QUIET, run_cli

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("experiment", "d_in"), [("separability", 2), ("heterogeneity", 128)])
def test_the_grid_runs(experiment, d_in, tmp_path):
    run_dir = tmp_path / "run"
    data = ["--data.n_test_per_concept", 50, "--data.batch_size", 64]
    limits = ["--trainer.max_steps", 4, "--figures.max_saes", 0, "--receptive_fields.max_saes", 0, *QUIET]
    args = ["-c", CONFIGS / experiment / "grid.yaml", *data, *limits, "--run_dir", run_dir]
    assert run_cli("fit", *args).code == 0
    last = run_dir / "checkpoints" / "last.ckpt"
    outcome = run_cli("test", *args, "--ckpt_path", last)
    assert outcome.code == 0, outcome.err[-2000:]
    results = json.loads((run_dir / "results.json").read_text())
    members = results["model"]["init_args"]["members"]
    assert len(members) == 8
    x = torch.randn(20, d_in)
    for name in members:
        sae = load_sae(last, member=name)
        assert ("sae.encoder.offset" in sae.state_dict()) == (name.startswith("distance") and "simplex" not in name)
        assert sae(x).codes.shape == (20, sae.d_sae)
        # a fair share of latents fires from the start, whatever the encoder
        assert 2 < results["test"]["metrics"][f"{name}/test/l0"] < sae.d_sae * 0.7, name
