"""What TensorBoard and metrics.csv hold."""

import csv
import json
import time

import pytest
import torch
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from sae_lightning.run.loggers import RunCSVLogger, RunTensorBoardLogger, split_member
from tests.helpers.runs import MEMBERS, events

CONCEPTS = [f"C{i}" for i in range(6)]
TRAIN = {"train/loss", "train/mse", "train/l0", "train/silent_latents"}
EVALUATED = {"loss", "mse", "l0", "nmse", "norm_ratio", "dead_latents", "f1", "best_f1", "monosemanticity"}
EVALUATED |= {"stable_rank_codes", "stable_rank_latents", "cross_concept_cosine"}
EVALUATED |= {f"{key}/{concept}" for key in ("f1", "f1_std", "best_f1", "l0", "nmse") for concept in CONCEPTS}
DISCOVERED = {"discovery_rand", "discovery_clusters"}
DYNAMICS = {"spade": "train/lambda", "jumprelu": "train/threshold"}


def hparams(accumulator):
    """Hyperparameters of the last session, and the metrics that the HPARAMS tab shows."""
    content = accumulator.PluginTagToContent("hparams")
    start = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info
    experiment = HParamsPluginData.FromString(content["_hparams_/experiment"]).experiment
    assert HParamsPluginData.FromString(content["_hparams_/session_end_info"]).HasField("session_end_info")
    values = {}
    for name, value in start.hparams.items():
        kind = value.WhichOneof("kind")
        values[name] = None if kind is None else getattr(value, kind)
    return values, {info.name.tag for info in experiment.metric_infos}


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("val/f1", ("", "val/f1")),
        ("val/f1/C0", ("", "val/f1/C0")),
        ("train/lr", ("", "train/lr")),
        ("spade/val/f1/C0", ("spade", "val/f1/C0")),
        ("spade-1e-3/test/loss", ("spade-1e-3", "test/loss")),
        ("val/test/loss", ("", "val/test/loss")),
        ("epoch", ("", "epoch")),
    ],
)
def test_split_member(key, expected):
    assert split_member(key) == expected


@pytest.mark.parametrize("name", MEMBERS)
def test_tensorboard_of_a_single_sae(name, experiment):
    run_dir = experiment(name)
    found = events(run_dir)
    scalars = set(found.Tags()["scalars"])
    expected = {*TRAIN, "train/lr", *(f"val/{key}" for key in EVALUATED)}
    expected |= {f"test/{key}" for key in EVALUATED | DISCOVERED}
    assert expected <= scalars
    for family, key in DYNAMICS.items():
        assert any(tag.startswith(key) for tag in scalars) == (family == name)
    assert [event.step for event in found.Scalars("train/loss")] == [4, 9, 14, 19]
    results = json.loads((run_dir / "results.json").read_text())
    for key, value in results["test"]["metrics"].items():
        assert found.Scalars(key)[-1].value == pytest.approx(value, rel=1e-6)
    images = set(found.Tags()["images"])
    assert images >= {"val/concept_f1", "val/latent_similarity", "test/concept_f1", "test/receptive_fields"}
    assert images >= {"test/code_similarity", "test/latent_similarity"}
    assert not (run_dir / "members").exists()


@pytest.mark.parametrize("name", MEMBERS)
def test_hparams_of_a_single_sae(name, experiment):
    run_dir = experiment(name)
    found = events(run_dir)
    values, metrics = hparams(found)
    described = json.loads((run_dir / "results.json").read_text())["model"]
    assert values["class"] == described["class_path"].rpartition(".")[2]
    assert values["d_sae"] == 128
    assert values["gamma"] == described["init_args"]["gamma"]
    assert {"hparams/val/f1", "hparams/val/l0", "hparams/val/nmse"} <= metrics
    assert found.Scalars("hparams/val/f1")[-1].value == found.Scalars("val/f1")[-1].value
    assert found.Scalars("hparams/test/f1")[-1].value == found.Scalars("test/f1")[-1].value


def test_hparams_show_metrics_of_the_test_beside_those_of_fit(experiment):
    """TensorBoard keeps the first list of metrics that it meets in a run, so fit's list must name those of test."""
    _, metrics = hparams(events(experiment("spade")))
    assert {"hparams/val/f1", "hparams/test/f1", "hparams/test/l0", "hparams/test/nmse"} <= metrics


def test_members_of_a_comparison_share_tags_in_runs_of_their_own(experiment):
    run_dir = experiment("compare")
    results = json.loads((run_dir / "results.json").read_text())
    own = {}
    for member in MEMBERS:
        found = events(run_dir / "members" / member)
        own[member] = {tag for tag in found.Tags()["scalars"] if not tag.startswith("hparams/")}
        assert {*TRAIN, *(f"val/{key}" for key in EVALUATED), *(f"test/{key}" for key in EVALUATED)} <= own[member]
        assert [event.step for event in found.Scalars("train/loss")] == [4, 9, 14, 19]
        assert found.Scalars("test/f1")[-1].value == pytest.approx(results["test"]["metrics"][f"{member}/test/f1"])
        values, metrics = hparams(found)
        description = results["model"]["init_args"]["members"][member]
        assert values["class"] == description["class_path"].rpartition(".")[2]
        assert values["gamma"] == description["init_args"]["gamma"]
        assert "hparams/val/f1" in metrics
        shown = found.Scalars("hparams/test/f1")[-1].value
        assert shown == pytest.approx(results["test"]["metrics"][f"{member}/test/f1"])
    measured = {m: {tag for tag in own[m] if not tag.startswith(("train/", "test/alone/"))} for m in MEMBERS}
    assert all(measured[member] == measured["relu"] for member in MEMBERS)
    for member in MEMBERS:  # no SAE is compared with itself
        others = {tag.rpartition("/")[2] for tag in own[member] if tag.startswith("test/alone/")}
        assert others == set(MEMBERS) - {member}
    whole = events(run_dir)
    assert all("train/lr" in own[member] for member in MEMBERS)  # each has a schedule of its own
    assert not [tag for tag in whole.Tags()["scalars"] if split_member(tag)[0]]
    images = set(whole.Tags()["images"])
    assert {"val/concept_f1", "val/f1_against_l0", "test/f1_against_l0", "test/metrics_against_l0"} <= images


def test_hparams_of_fit_alone_hold_validation_metrics(tmp_path):
    logger = RunTensorBoardLogger(str(tmp_path))
    metrics = {"spade/val/f1": 0.5, "relu/val/f1": 0.25}
    for name in ("spade", "relu"):
        logger.log_outcome(name, {"class": name, "optimizer": None, "radii": (1.0, 2.0)}, metrics)
    logger.finalize("success")
    for name, value in (("spade", 0.5), ("relu", 0.25)):
        found = events(tmp_path / "members" / name)
        values, tags = hparams(found)
        assert values == {"class": name, "optimizer": "None", "radii": "(1.0, 2.0)"}
        assert "hparams/val/f1" in tags
        assert [event.value for event in found.Scalars("hparams/val/f1")] == [value]


def read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_files_are_continued_also_with_other_columns(tmp_path):
    first = RunCSVLogger(str(tmp_path))
    first.log_metrics({"train/loss": 2.0}, step=4)
    first.log_metrics({"val/f1": torch.tensor(0.5)}, step=4)
    first.finalize("success")
    second = RunCSVLogger(str(tmp_path))
    second.log_metrics({"test/f1": 0.25, "train/loss": 1.0}, step=9)
    second.finalize("success")
    third = RunCSVLogger(str(tmp_path))
    third.log_metrics({"val/f1": 0.75}, step=14)
    third.save()
    third.save()
    rows = [{key: value for key, value in row.items() if value} for row in read(tmp_path / "metrics.csv")]
    assert rows == [
        {"step": "4", "train/loss": "2.0"},
        {"step": "4", "val/f1": "0.5"},
        {"step": "9", "train/loss": "1.0", "test/f1": "0.25"},
        {"step": "14", "val/f1": "0.75"},
    ]


def test_csv_survives_an_empty_file(tmp_path):
    (tmp_path / "metrics.csv").write_text("")
    logger = RunCSVLogger(str(tmp_path))
    logger.log_metrics({"val/f1": 0.75}, step=14)
    logger.finalize("success")
    assert [row["val/f1"] for row in read(tmp_path / "metrics.csv")] == ["0.75"]


def test_a_resumed_run_drops_the_rows_that_it_will_log_again_and_what_was_cut_off(tmp_path):
    path = tmp_path / "metrics.csv"
    header = "epoch,step,test/f1,train/loss,val/f1\r\n"
    kept = header + "0,4,,2.0,\r\n0,4,,,0.5\r\n"
    path.write_bytes((kept + "0,9,,1.0,\r\n0,9,,,0.6\r\n0,10,0.7,,\r\n0,14,,0.").encode())
    (tmp_path / ".metrics.csv.tmp").write_text("half of a file")
    logger = RunCSVLogger(str(tmp_path), first_step=5)
    logger.log_metrics({"train/loss": 1.0, "epoch": 0}, step=9)
    logger.finalize("success")
    assert path.read_bytes().decode() == kept + "0,10,0.7,,\r\n" + "0,9,,1.0,\r\n"
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.csv"]


def test_a_later_command_drops_a_row_that_was_cut_off(tmp_path):
    (tmp_path / "metrics.csv").write_bytes(b"step,val/f1\r\n4,0.5\r\n9,0")
    logger = RunCSVLogger(str(tmp_path))
    logger.log_metrics({"test/f1": 0.25}, step=9)
    logger.finalize("success")
    assert (tmp_path / "metrics.csv").read_bytes() == b"step,test/f1,val/f1\r\n4,,0.5\r\n9,0.25,\r\n"


def test_a_kill_while_columns_are_added_leaves_the_rows(tmp_path, monkeypatch):
    logger = RunCSVLogger(str(tmp_path))
    logger.log_metrics({"train/loss": 2.0}, step=4)
    logger.save()
    before = (tmp_path / "metrics.csv").read_bytes()
    logger.log_metrics({"val/f1": 0.5}, step=4)
    monkeypatch.setattr("os.replace", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        logger.save()
    assert (tmp_path / "metrics.csv").read_bytes() == before


def test_tensorboard_forgets_what_a_resumed_run_logs_again(tmp_path):
    for value, first_step in ((1.0, None), (2.0, 5)):
        time.sleep(1.1)  # files are read in the order of their names, which hold the second
        logger = RunTensorBoardLogger(str(tmp_path), first_step)
        for step in (4, 9) if first_step is None else (9, 14):
            logger.log_metrics({"train/loss": value, "spade/train/loss": value}, step=step)
        logger.finalize("success")
        logger.log_metrics({"spade/test/f1": value}, step=14)  # a writer of its own, which must not forget
        logger.finalize("success")
    for folder in (tmp_path, tmp_path / "members" / "spade"):
        assert [(e.step, e.value) for e in events(folder).Scalars("train/loss")] == [(4, 1.0), (9, 2.0), (14, 2.0)]
