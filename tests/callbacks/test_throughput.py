import time

import lightning.pytorch as pl
import pytest

from sae_lightning import SeparabilityDataModule, SpaDE
from sae_lightning.callbacks import Throughput
from sae_lightning.run.loggers import RunCSVLogger
from tests.helpers.runs import rows
from tests.helpers.trainers import quiet_trainer

STEP, VALIDATION = 0.02, 0.4


class Slow(pl.Callback):
    """Steps and validations of a known length."""

    def on_train_batch_start(self, *args):
        time.sleep(STEP)

    def on_validation_epoch_start(self, *args):
        time.sleep(VALIDATION)


def rates(folder):
    found = [(int(row["step"]), row.get("train/samples_per_second")) for row in rows(folder)]
    return {step: float(value) for step, value in found if value}


@pytest.mark.parametrize("batches", [1, 2])
def test_the_rate_counts_samples_and_leaves_validation_out(tmp_path, batches):
    """With validations, which follow every step, it would be below a tenth of the upper bound."""
    data = SeparabilityDataModule(
        n_per_concept=300, n_val_per_concept=20, n_test_per_concept=21, batch_size=16, eval_batch_size=50, seed=0
    )
    trainer = quiet_trainer(
        [Slow(), Throughput()],
        max_steps=6,
        max_epochs=-1,
        val_check_interval=batches,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        accumulate_grad_batches=batches,
        log_every_n_steps=2,
        logger=RunCSVLogger(str(tmp_path)),
        default_root_dir=tmp_path,
    )
    trainer.fit(SpaDE(d_in=2, d_sae=16, n_init_samples=64), data)
    found = rates(tmp_path)
    assert list(found) == [1, 3, 5]
    for value in found.values():
        assert 16 / STEP / 10 < value < 16 / STEP
