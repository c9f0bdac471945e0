import csv
import time

import lightning.pytorch as pl
import pytest

from sae_lightning.callbacks import Throughput
from tests.callbacks.test_training import data, sae, trainer

STEP, VALIDATION = 0.02, 0.4


class Slow(pl.Callback):
    """Steps and validations of a known length."""

    def on_train_batch_start(self, *args):
        time.sleep(STEP)

    def on_validation_epoch_start(self, *args):
        time.sleep(VALIDATION)


def rates(folder):
    with (folder / "metrics.csv").open() as file:
        found = [(int(row["step"]), row.get("train/samples_per_second")) for row in csv.DictReader(file)]
    return {step: float(value) for step, value in found if value}


@pytest.mark.parametrize("batches", [1, 2])
def test_the_rate_counts_samples_and_leaves_validation_out(tmp_path, batches):
    """With validations, which follow every step, it would be below a tenth of the upper bound."""
    trainer(
        tmp_path,
        Slow(),
        Throughput(),
        max_steps=6,
        val_check_interval=batches,
        accumulate_grad_batches=batches,
        log_every_n_steps=2,
    ).fit(sae(), data())
    found = rates(tmp_path)
    assert list(found) == [1, 3, 5]
    for value in found.values():
        assert 16 / STEP / 10 < value < 16 / STEP
