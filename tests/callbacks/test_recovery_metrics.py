"""A metric is one entry of a list: everything else follows from it."""

import json
import pickle

import lightning.pytorch as pl
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchmetrics import Metric

from sae_lightning import SeparabilityDataModule, SpaDE
from sae_lightning.callbacks import ConceptRecovery, RecoveryTable, ReportPage, ResultsWriter
from sae_lightning.callbacks.recovery_metrics import (
    METRICS,
    Column,
    Problem,
    Recovery,
    RecoveryMetric,
    RecoveryMetrics,
    Scalar,
    columns,
)
from sae_lightning.run.loggers import RunTensorBoardLogger
from tests.helpers.pages import Page


class LargestCode(Metric):
    """A user's metric: the largest code, of all samples and of each concept."""

    def __init__(self, n_concepts: int) -> None:
        super().__init__()
        self.add_state("largest", torch.zeros(n_concepts), dist_reduce_fx="max")

    def update(self, codes: torch.Tensor, concepts: torch.Tensor) -> None:
        self.largest.scatter_reduce_(0, concepts, codes.amax(1), "amax")

    def compute(self) -> torch.Tensor:
        return self.largest


ENTRY = RecoveryMetric(
    "largest",
    lambda p: LargestCode(p.n_concepts),
    (
        Scalar("largest_code", lambda r: r.max(), Column("largest", ".4f", "Largest <code>"), labeled=True),
        Scalar("largest_code", lambda r: r, per_concept=True),
    ),
    possible=lambda p: p.n_concepts > 0,
)


def test_a_new_metric_is_one_entry(tmp_path, monkeypatch):
    monkeypatch.setattr("sae_lightning.callbacks.recovery_metrics.METRICS", [*METRICS, ENTRY])
    data = SeparabilityDataModule(n_per_concept=100, n_val_per_concept=8, n_test_per_concept=20, batch_size=32, seed=0)
    torch.manual_seed(0)
    module, logger = SpaDE(2, 8), RunTensorBoardLogger(str(tmp_path))
    cpu = {"accelerator": "cpu", "enable_progress_bar": False, "enable_checkpointing": False}
    cpu["enable_model_summary"] = False
    pl.Trainer(max_steps=1, limit_val_batches=0, logger=False, **cpu).fit(module, datamodule=data)
    recovery = ConceptRecovery()
    given = [recovery, RecoveryTable(), ReportPage(), ResultsWriter()]
    pl.Trainer(logger=logger, callbacks=given, **cpu).test(module, datamodule=data, verbose=False)
    logger.finalize("success")

    split = data.split("test")
    with torch.no_grad():
        largest = module.eval().encode(split.activations).amax(1)
    expected = [float(largest[split.concepts == i].max()) for i in range(6)]
    assert recovery.results[""].largest.tolist() == pytest.approx(expected)
    metrics = json.loads((tmp_path / "results.json").read_text())["test"]["metrics"]
    assert metrics["test/largest_code"] == pytest.approx(max(expected))
    assert [metrics[f"test/largest_code/C{i}"] for i in range(6)] == pytest.approx(expected)
    header, _, row = (tmp_path / "results.md").read_text().splitlines()[2:5]
    place = [cell.strip() for cell in header.split("|")].index("largest")
    assert [cell.strip() for cell in row.split("|")][place] == f"{max(expected):.4f}"
    page = Page((tmp_path / "report.html").read_text())
    assert ("th", {"scope": "col", "title": "Largest <code>"}) in page.tags
    assert f"{max(expected):.4f}" in [text for _, text in page.cells]
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"test/largest_code", "test/largest_code/C5"} <= set(events.Tags()["scalars"])


def test_names_and_columns_are_distinct():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    keys = [(s.key, s.per_concept) for metric in METRICS for s in metric.scalars]
    assert len(set(keys)) == len(keys)
    assert [s.column.label for s in columns()] == ["L0", "NMSE", "dead", "monosem.", "rank codes"]
    assert not any(s.per_concept for s in columns())


def test_metrics_can_be_pickled():
    """As a strategy that spawns processes needs it."""
    metrics = RecoveryMetrics(Problem(2, 4, 3, 5, True, 10))
    assert pickle.loads(pickle.dumps(metrics)).metrics.keys() == metrics.metrics.keys()


def test_unknown_metrics_are_named():
    recovery = Recovery({"l0": 1}, labeled=False)
    assert recovery.l0 == 1
    assert recovery.f1 is None
    with pytest.raises(AttributeError, match="there is no metric 'l1': choose from l0, nmse, dead, f1, monosem"):
        recovery.l1  # noqa: B018
