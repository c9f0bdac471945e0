"""A vision model through the command line."""

import json

import pytest
import torch

from sae_lightning.data import read_vision_model
from tests.helpers.images import write_mnist_like
from tests.helpers.runs import CONFIGS, QUIET, last, run_cli

SMALL = ["--data.concept_names", "[rows, columns]", "--data.n_val", 16, "--data.batch_size", 16]
SMALL += ["--model.patch_size", 4, "--model.width", 16, "--model.n_layers", 1, "--model.n_heads", 2]
SMALL += ["--features.n_labelled", 32, "--features.k", 3]
LITTLE = ["--trainer.max_steps", 8, "--trainer.val_check_interval", 4, "--trainer.log_every_n_steps", 2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_mnist_like(tmp_path_factory.mktemp("images"))


def command(name, folder, run_dir, *args):
    given = ["-c", CONFIGS / "vision" / "vit.yaml", "--data.folder", folder, *SMALL, *LITTLE, *QUIET]
    outcome = run_cli(name, *given, "--run_dir", run_dir, *args)
    assert outcome.code == 0, outcome.err[-3000:]
    return outcome


@pytest.fixture(scope="module")
def trained(tmp_path_factory, images):
    folder = tmp_path_factory.mktemp("vision") / "vit"
    command("fit", images, folder)
    return folder


def test_a_vision_model_is_trained_and_tested(trained, images):
    command("test", images, trained, "--ckpt_path", last(trained))
    results = json.loads((trained / "results.json").read_text())
    for name, stage in (("fit", "val"), ("test", "test")):
        keys = {f"{stage}/{key}" for key in ("loss", "knn_accuracy", "linear_accuracy")}
        assert results[name]["metrics"].keys() == keys
    assert results["fit"]["samples_seen"] == 8 * 16
    assert results["model"]["init_args"]["image_size"] == 8
    assert read_vision_model(last(trained)).embed.image_size == 8


def test_a_vision_model_goes_on_where_it_stopped(trained, images, tmp_path):
    half = tmp_path / "half"
    command("fit", images, half, "--trainer.max_steps", 4, "--checkpoint.every_n_steps", 4)
    command("fit", images, half, "--ckpt_path", last(half))
    whole, resumed = (torch.load(last(folder), weights_only=True)["state_dict"] for folder in (trained, half))
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


def test_images_of_another_size_are_refused(trained, tmp_path):
    other = write_mnist_like(tmp_path / "other", size=12)
    outcome = run_cli(
        "test", "-c", CONFIGS / "vision" / "vit.yaml", "--data.folder", other, *SMALL, *LITTLE, *QUIET,
        "--run_dir", tmp_path / "run", "--ckpt_path", last(trained),
    )  # fmt: skip
    assert outcome.code == 2
    assert "--ckpt_path has image_size = 8, but the data has image_size = 12" in outcome.err
