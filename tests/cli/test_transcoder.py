"""A transcoder from the command line: its targets come from a file, and their size from the data."""

import numpy as np
import pytest
import torch

from sae_lightning import load_sae
from tests.helpers.runs import last, refused, results, run_cli

QUICK = ("--trainer.accelerator", "cpu", "--trainer.val_check_interval", 100)
BY_STEPS = ("--trainer.check_val_every_n_epoch", "null")


@pytest.fixture
def files(tmp_path):
    """Inputs of 6 features, and targets of 3 that are sparse combinations in another space."""
    rng = np.random.default_rng(0)
    strengths = rng.random((2000, 5)) * (rng.random((2000, 5)) < 0.4)
    inputs = strengths @ np.eye(5, 6) * 3 + 5
    np.save(tmp_path / "x.npy", inputs.astype(np.float32))
    np.save(tmp_path / "y.npy", (50 * strengths @ rng.standard_normal((5, 3)) - 7).astype(np.float32))
    np.save(tmp_path / "short.npy", np.ones((7, 3), dtype=np.float32) * np.arange(7, dtype=np.float32)[:, None])
    return tmp_path


def fit(files, *more, model="Transcoder", targets="y.npy"):
    data = ("--data", "TensorDataModule", "--data.path", files / "x.npy", "--data.batch_size", 64)
    given = () if targets is None else ("--data.targets", files / targets)
    saes = ("--model", model, "--model.d_sae", 16, "--run_dir", files / "run")
    return run_cli("fit", *saes, *data, *given, *QUICK, *BY_STEPS, *more)


def test_it_is_trained_tested_resumed_and_loaded(files):
    lr = ("--model.optimizer", "Adam", "--model.optimizer.lr", 0.01, "--model.gamma", 0.001)
    outcome = fit(files, "--trainer.max_steps", 600, "--model.gamma_warmup", 0.1, *lr)
    assert outcome.code == 0, outcome.err[-2000:]
    config = files / "run" / "config.yaml"
    outcome = run_cli("test", "-c", config, "--ckpt_path", last(files / "run"))
    assert outcome.code == 0, outcome.err[-2000:]
    found = results(files / "run")
    assert found["test"]["metrics"]["test/nmse"] < 0.05  # of the targets
    sae = load_sae(last(files / "run"))
    assert sae.init_args["d_out"] == 3
    x, y = (torch.from_numpy(np.load(files / name)) for name in ("x.npy", "y.npy"))
    assert float((sae(x).x_hat - y).square().mean() / y.var(dim=0).mean()) < 0.05
    outcome = run_cli("fit", "-c", config, "--ckpt_path", last(files / "run"), "--trainer.max_steps", 650)
    assert outcome.code == 0, outcome.err[-2000:]
    assert results(files / "run")["fit"]["samples_seen"] == 650 * 64


def test_data_without_targets_are_refused(files):
    refused(fit(files, "--trainer.max_steps", 2, targets=None), "d_out must be the size of the targets, but is None")


def test_an_sae_ignores_targets(files):
    assert fit(files, "--trainer.max_steps", 20, model="ReLUSAE").code == 0
    assert load_sae(last(files / "run")).W_dec.shape == (16, 6)


def test_targets_of_another_number_are_refused(files):
    outcome = fit(files, "--trainer.max_steps", 2, targets="short.npy")
    refused(outcome, "targets must be as many as activations, 2000, but are 7")
