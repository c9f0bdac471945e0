"""An SAE of several layers from the command line, with every default callback, alone and in a Comparison."""

from typing import Any

import pytest
import torch

from sae_lightning import load_sae
from sae_lightning.data import ActivationDataModule
from sae_lightning.data.datamodule import SPLIT_SEEDS, Split
from sae_lightning.data.loading import ActivationDataset
from sae_lightning.data.seeding import seeded_generator
from sae_lightning.modules import BaseSAE
from sae_lightning.nn import L1, Affine, Decoder, Orthant
from tests.helpers.runs import last, results, run_cli

HERE = "tests.cli.test_layers"
STEPS = ("--trainer.max_steps", 200, "--trainer.val_check_interval", 100, "--trainer.check_val_every_n_epoch", "null")
SMALL = ("--visibility.n_resamples", 20, "--visibility.max_samples", 200)


class Layers(ActivationDataModule):
    """Three concepts that two layers show in different scales."""

    input_layers = 2

    def __init__(self, batch_size: int = 64, eval_batch_size: int = 100, seed: int | None = None) -> None:
        super().__init__(4, ["a", "b", "c"], batch_size, eval_batch_size, seed)

    def make_split(self, split: Split) -> ActivationDataset:
        generator = seeded_generator(self.seed, SPLIT_SEEDS[split])
        labels = torch.arange(600) % 3
        points = 4 * torch.eye(3, 4)[labels] + 0.3 * torch.randn(600, 4, generator=generator)
        return ActivationDataset(torch.stack([points, 100 - 20 * points], dim=1), labels)


class Crosscoder(BaseSAE):
    """Codes that all layers share."""

    def __init__(self, d_in: int, d_sae: int, input_layers: int | None = None, **shared: Any) -> None:
        features = d_in * (input_layers or 1)
        super().__init__(
            Affine(features, d_sae),
            Orthant(d_sae),
            Decoder(features, d_sae),
            L1(d_sae),
            gamma=1e-3,
            input_layers=input_layers,
            **shared,
        )


@pytest.mark.parametrize("together", [pytest.param(False, marks=pytest.mark.slow), True])
def test_it_is_trained_tested_and_loaded(tmp_path, together):
    if together:
        config = tmp_path / "model.yaml"
        member = f"{{class_path: {HERE}.Crosscoder, init_args: {{d_sae: 16, input_layers: 2}}}}"
        config.write_text(
            f"model:\n  class_path: Comparison\n  init_args:\n    members:\n      x: {member}\n      y: {member}\n"
        )
        model = ("-c", config)
    else:
        model = ("--model", f"{HERE}.Crosscoder", "--model.d_sae", 16)
    run = tmp_path / "run"
    data = ("--data", f"{HERE}.Layers")
    resampled = ("--trainer.callbacks+", "ResampleDeadLatents", "--trainer.callbacks.every_n_steps", 50)
    outcome = run_cli("fit", *model, *data, "--run_dir", run, *STEPS, *SMALL, *resampled)
    assert outcome.code == 0, outcome.err[-2000:]
    outcome = run_cli("test", "-c", run / "config.yaml", "--ckpt_path", last(run), *SMALL)
    assert outcome.code == 0, outcome.err[-2000:]
    outcome = run_cli("predict", "-c", run / "config.yaml", "--ckpt_path", last(run))
    assert outcome.code == 0, outcome.err[-2000:]
    metrics = results(run)["test"]["metrics"]
    name = "x/" if together else ""
    assert metrics[f"{name}test/nmse"] < 0.05
    assert metrics[f"{name}test/best_f1"] > 0.9
    sae = load_sae(last(run), member="x" if together else None)
    x = Layers(seed=0).split("test").activations
    assert sae(x).x_hat.shape == (600, 2, 4)
    assert float((sae(x).x_hat - x).square().sum() / (x - x.mean(0)).square().sum()) < 0.05
