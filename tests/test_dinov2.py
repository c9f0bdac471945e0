"""The paper's vision configs, on a tiny model of the same kind, through the real command line."""

import json

import numpy as np
import pytest
import yaml

from tests.helpers import hosts
from tests.helpers.runs import CONFIGS, QUIET, run_cli

pytest.importorskip("transformers")
pytest.importorskip("litdata")
Image = pytest.importorskip("PIL.Image")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny DINOv2 with registers, and two classes of thirty images, one of which cannot be read."""
    folder = tmp_path_factory.mktemp("vision")
    hosts.dino(folder / "model")
    generator = np.random.default_rng(0)
    for name, low in (("church", 0), ("tench", 128)):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(30):
            pixels = generator.integers(low, low + 128, (70, 90, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    (folder / "images" / "church" / "broken.jpg").write_bytes(b"no image")
    return folder


@pytest.mark.slow
def test_dinov2_is_harvested_and_its_saes_trained_and_tested(folders, tmp_path):
    harvest = CONFIGS / "vision" / "dinov2-harvest.yaml"
    for tokens in ("all", "cls"):
        outcome = run_cli(
            *("harvest", "-c", harvest, "--host.init_args.name", folders / "model", "--devices", "[cpu]"),
            *("--source.init_args.root", folders / "images", "--host.init_args.tokens", tokens),
            *("--output", tmp_path / tokens, "--val_fraction", "0.2", "--test_fraction", "0.2"),
        )
        assert outcome.code == 0, outcome.err
        assert "images/s" in outcome.err
        assert "skipped, since they cannot be read: 1 examples" in outcome.out
        manifest = json.loads((tmp_path / tokens / "manifest.json").read_text())
        assert sum(manifest["samples"].values()) == 60 * (21 if tokens == "all" else 1)
        assert manifest["concept_names"] == ["church", "tench"]
    config = yaml.safe_load((CONFIGS / "vision" / "dinov2.yaml").read_text())
    config["data"]["init_args"].update(cache=str(tmp_path / "all"), batch_size=64, n_val=100)
    config["trainer"].update(max_steps=20, val_check_interval=10, log_every_n_steps=10, accelerator="cpu")
    (tmp_path / "dinov2.yaml").write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    common = ("-c", tmp_path / "dinov2.yaml", "--run_dir", run, *QUIET)
    assert run_cli("fit", *common).code == 0
    test = run_cli(
        *("test", *common, "--data.init_args.cache", tmp_path / "cls"),
        *("--ckpt_path", run / "checkpoints" / "last.ckpt"),
    )
    assert test.code == 0, test.err
    metrics = json.loads((run / "results.json").read_text())["test"]["metrics"]
    assert {f"{name}/test/f1/tench" for name in ("spade", "relu", "jumprelu", "topk")} <= metrics.keys()
    assert "data:image/" in (run / "report.html").read_text()


def test_an_unreadable_image_ends_a_harvest_that_may_skip_none(folders, tmp_path):
    outcome = run_cli(
        *("harvest", "-c", CONFIGS / "vision" / "dinov2-harvest.yaml", "--host.init_args.name", folders / "model"),
        *("--source.init_args.root", folders / "images", "--unreadable", "refuse", "--output", tmp_path / "cache"),
    )
    assert outcome.code == 2
    assert "broken.jpg' cannot be read" in outcome.err


def test_patches_may_be_read_as_training_goes(folders, tmp_path):
    outcome = run_cli(
        *("fit", "--model", "TopKSAE", "--model.d_sae", "32", "--model.k", "4", "--data", "LiveDataModule"),
        *("--data.host", "ImageHost", "--data.host.name", folders / "model", "--data.host.tokens", "patches"),
        *("--data.source", "ImageFolder", "--data.source.root", folders / "images", "--data.layer", "layernorm"),
        *("--data.unreadable", "skip", "--data.window_size", "20", "--data.batch_size", "32", "--data.n_val", "64"),
        *("--data.val_fraction", "0.2", "--data.test_fraction", "0.2", "--data.n_test", "64"),
        *("--trainer.max_steps", "12", "--trainer.max_epochs", "-1", "--trainer.accelerator", "cpu"),
        *("--run_dir", tmp_path / "run", *QUIET),
    )
    assert outcome.code == 0, outcome.err
    assert any("cannot be read and are skipped" in message and "broken.jpg" in message for message in outcome.warnings)
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
