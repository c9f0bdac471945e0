"""`sae-lightning diagnose`, end to end: any data, any config of fit, and what it refuses."""

import json
import shutil
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sae_lightning import Comparison, ComposedSAE, JumpReLUSAE, ReLUSAE, SpaDE, TopKSAE
from sae_lightning.cli.commands.diagnose import FIT_KEYS, architectures_of, make_parser
from sae_lightning.nn import Affine, HalfSpace, Simplex
from tests.helpers.runs import CONFIGS, contents, run_cli

SEPARABILITY = ["--data", "SeparabilityDataModule", "--data.n_val_per_concept", 100, "--data.n_per_concept", 5000]
SHORT = ["--max_samples", 1200, "--n_resamples", 20, "--num_threads", 1]
SHIPPED = ("separability/spade", "heterogeneity/topk", "formal_language/compare", "language/compare", "vision/compare")


def diagnosed(folder, *args):
    outcome = run_cli("diagnose", *args, "--output", folder, *SHORT)
    assert outcome.code == 0, outcome.err[-3000:]
    return json.loads((folder / "diagnosis.json").read_text()), outcome


def write(folder, labels=None, d_in=4, n=600):
    generator = torch.Generator().manual_seed(0)
    np.save(folder / "x.npy", torch.randn(n, d_in, generator=generator).numpy())
    args = ["--data", "TensorDataModule", "--data.path", folder / "x.npy"]  # fewer samples than a batch of training has
    if labels is not None:
        np.save(folder / "labels.npy", labels)
        args += ["--data.labels", folder / "labels.npy"]
    return args


@pytest.fixture(scope="module")
def separability(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnose") / "out"
    return folder, *diagnosed(folder, *SEPARABILITY)


def test_it_writes_and_prints_everything(separability):
    folder, found, outcome = separability
    assert {path.name for path in folder.glob("*")} >= {"diagnosis.json", "diagnosis.html", "config.yaml", "figures"}
    assert {path.name for path in (folder / "figures").glob("*")} == {"bounds.png", "dimension.png"}
    events = EventAccumulator(str(folder)).Reload()
    assert set(events.Tags()["images"]) == {"bounds", "dimension"}
    assert [concept["name"] for concept in found["concepts"]] == [f"C{i}" for i in range(6)]
    assert sum(concept["n_samples"] for concept in found["concepts"]) == 1200
    assert sum(concept["n_held_out"] for concept in found["concepts"]) == 300
    assert {verdict["name"] for verdict in found["verdicts"]} == {"JumpReLUSAE", "ReLUSAE", "TopKSAE", "SpaDE"}
    assert f"Recommendation: {found['recommendation']['architecture']}" in outcome.out
    assert str(folder / "diagnosis.html") in outcome.out
    assert "<h1>" in (folder / "diagnosis.html").read_text()


def test_inner_concepts_are_hidden_from_half_spaces_only(separability):
    _, found, _ = separability
    verdicts = {verdict["name"]: verdict for verdict in found["verdicts"]}
    assert verdicts["ReLUSAE"]["hides"] == ["C1", "C3", "C5"]
    assert verdicts["SpaDE"]["hides"] == []
    assert found["recommendation"]["architecture"] == "SpaDE"
    for concept in found["concepts"]:
        assert concept["dimension"]["participation_ratio"]["value"] == pytest.approx(2, rel=0.1)


def test_the_same_seed_finds_the_same(separability, tmp_path):
    _, found, _ = separability
    again, _ = diagnosed(tmp_path / "again", "-c", separability[0] / "config.yaml")
    for key in found.keys() - {"facts"}:
        assert again[key] == found[key], key


def test_a_config_of_fit_works_as_it_is_and_its_architectures_are_compared(tmp_path):
    configs = CONFIGS / "separability" / "compare.yaml", CONFIGS / "debug" / "fast.yaml"
    found, _ = diagnosed(tmp_path / "out", "-c", configs[0], "-c", configs[1], "--split", "test")
    assert [verdict["name"] for verdict in found["verdicts"]] == ["JumpReLUSAE", "ReLUSAE", "TopKSAE", "SpaDE"]
    assert [verdict["k"] for verdict in found["verdicts"]] == [None, None, 14, None]
    assert found["facts"]["Reported on"] == "300 samples of test"


@pytest.mark.parametrize("name", SHIPPED)
def test_configs_of_fit_are_understood(name):
    parsed = make_parser().parse_args(["-c", str(CONFIGS / f"{name}.yaml")])
    assert parsed.data.class_path.endswith("DataModule")
    assert parsed.model is not None


def test_whatever_a_run_of_fit_saves_is_understood(tmp_path):
    outcome = run_cli("fit", *SEPARABILITY, "--model", "SpaDE", "--model.d_sae", 8, "--print_config")
    config = yaml.safe_load(outcome.out)
    assert config.keys() > set(FIT_KEYS)
    own = {"seed_everything", "data", "model", "overwrite", "num_threads", "optimizer", "lr_scheduler"}
    assert config.keys() - set(FIT_KEYS) <= own
    (tmp_path / "config.yaml").write_text(outcome.out)
    parsed = make_parser().parse_args(["-c", str(tmp_path / "config.yaml")])
    assert parsed.model.init_args.d_sae == 8


def test_unlabelled_data_are_clustered(tmp_path):
    found, outcome = diagnosed(tmp_path / "out", *write(tmp_path), "--n_clusters", 3)
    assert found["clustered"]
    assert [concept["name"] for concept in found["concepts"]] == ["cluster 0", "cluster 1", "cluster 2"]
    assert "No sample has a label" in outcome.out
    assert "found by k-means" in (tmp_path / "out" / "diagnosis.html").read_text()


def test_a_rare_concept_and_a_single_one(tmp_path):
    labels = np.zeros(600, dtype=np.int64)
    labels[:12] = 1
    found, outcome = diagnosed(tmp_path / "rare", *write(tmp_path, labels))
    assert found["concepts"][1]["dimension"]["participation_ratio"]["value"] is None
    assert "samples are fewer than the 30 that any estimate needs" in outcome.out
    found, outcome = diagnosed(tmp_path / "single", *write(tmp_path, np.zeros(600, dtype=np.int64)))
    assert "there is one concept" in outcome.out
    assert found["recommendation"]["architecture"] is None


def test_a_model_of_ones_own_has_no_bound_and_is_named(tmp_path):
    labels = np.arange(600) % 2
    model = ["--model", "ComposedSAE", "--model.d_sae", 8, "--model.encoder", "sae_lightning.nn.Affine"]
    model += ["--model.projection", "tests.cli.test_diagnose.OwnProjection"]
    found, outcome = diagnosed(tmp_path / "out", *write(tmp_path, labels), *model)
    assert found["verdicts"][0] == {**found["verdicts"][0], "name": "ComposedSAE", "family": None, "mean_bound": None}
    assert "No bound for ComposedSAE" in outcome.out
    assert found["concepts"][0]["bounds"] == {}


class OwnProjection(Simplex):
    """Its receptive fields are nobody's but its own."""

    firing = None


def test_saes_that_differ_in_numbers_only_are_one():
    members = {
        "a": partial(TopKSAE, d_sae=8, k=2),
        "b": partial(TopKSAE, d_sae=16, k=4),
        "own": partial(ComposedSAE, d_sae=8, encoder=Affine, projection=Simplex),
        "other": partial(ComposedSAE, d_sae=8, encoder=Affine, projection=OwnProjection),
        "s": partial(SpaDE, d_sae=8),
        "r": partial(ReLUSAE, d_sae=8),
        "j": partial(JumpReLUSAE, d_sae=8),
    }
    found = architectures_of(Comparison(4, members), 4)
    names = ["JumpReLUSAE", "ReLUSAE", "TopKSAE", "SpaDE", "ComposedSAE (own)", "ComposedSAE (other)"]
    assert [architecture.name for architecture in found] == names
    assert found[1].field == HalfSpace()
    assert found[2].k == 2
    assert found[5].field is None


def test_an_earlier_diagnosis_is_kept_unless_asked(separability, tmp_path):
    folder = separability[0]
    refused = run_cli("diagnose", "--output", folder, *SEPARABILITY, *SHORT)
    assert refused.code == 2
    assert "exists already: choose another, or replace it with --overwrite true" in refused.err
    for name in ("mine.txt", "probes.txt", "bounds.png"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text("not yours")
        refused = run_cli("diagnose", "--output", folder, *SEPARABILITY, *SHORT, "--overwrite", "true")
        assert refused.code == 2
        assert "holds no diagnosis" in refused.err
        assert (folder / name).exists()


def test_a_diagnosis_that_cannot_be_made_replaces_none(separability, tmp_path):
    shutil.copytree(separability[0], tmp_path / "out")
    before = contents(tmp_path / "out")
    args = ["--output", tmp_path / "out", *SEPARABILITY, *SHORT, "--overwrite", "true", "--found_above", 2]
    assert run_cli("diagnose", *args).code == 2
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--max_samples", 3], "max_samples must be at least 4, but is 3"),
        (["--num_threads", 0], "num_threads must be at least 1, but is 0"),
        (["--found_above", 2], "found_above must lie between 0 and 1, but is 2"),
        (["--confidence", 1], "confidence must lie between 0 and 1"),
        (["--split", "train"], "split"),
        (["--data.n_per_concept", 0], "n_per_concept must be at least 1"),
        (["--trainr.max_steps", 3], "trainr"),
    ],
)
def test_wrong_arguments_end_with_a_message(args, words, tmp_path):
    outcome = run_cli("diagnose", *SEPARABILITY, "--output", tmp_path / "out", *args)
    assert outcome.code == 2
    assert words in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out" / "diagnosis.json").exists()
