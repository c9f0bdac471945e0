"""What callbacks declare holds, and decides on keys, models and order."""

import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import Checkpoint

from sae_lightning import LanguageModel, SeparabilityDataModule, SpaDE, VisionModel, callbacks
from sae_lightning.callbacks import DEFAULT, ConceptRecovery, RecoveryTable, RunCallback, Throughput
from sae_lightning.callbacks.base import in_order
from sae_lightning.modules import SAEModule
from sae_lightning.modules.run import RunModule
from tests.helpers.runs import QUIET, run_cli

GRAMMAR = "S -> 'a' [0.5] | 'a' S [0.5]"


class Follower(RunCallback):
    """A user's own callback, which reads what ConceptRecovery has measured."""

    needs = (ConceptRecovery,)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        measured = callbacks.base.found(trainer, ConceptRecovery).results
        print("measured before:", bool(measured) or trainer.sanity_checking)


class Lonely(RunCallback):
    """A user's own callback, which needs one that no run has by default."""

    needs = (Throughput,)


class Circular(RunCallback):
    """Needs any other of its kind."""


Circular.needs = (Circular,)


def snake_case(name):
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


@pytest.mark.parametrize("default", DEFAULT)
def test_key_file_and_class_share_a_name(default):
    file = Path(default.__module__.replace(".", "/")).name
    assert file == default.key
    assert f"_{default.key}_" in f"_{snake_case(default.__name__)}_"
    assert getattr(callbacks, default.__name__) is default


def test_keys_are_distinct_and_models_known():
    assert len({default.key for default in DEFAULT}) == len(DEFAULT)
    assert {default.serves for default in DEFAULT} == {RunModule, SAEModule, LanguageModel, VisionModel}


def test_what_is_needed_is_a_default_that_comes_before():
    for i, default in enumerate(DEFAULT):
        for other in (*default.needs, *default.uses):
            assert other in DEFAULT[:i], (default, other)
            assert issubclass(default.serves, other.serves)
            assert not issubclass(other, Checkpoint)  # Lightning runs these last


def test_order_changes_only_where_something_is_needed():
    first, table, follower, recovery = pl.Callback(), RecoveryTable(), Follower(), ConceptRecovery()
    assert in_order([first, recovery, table]) == [first, recovery, table]
    assert in_order([first, follower, table, recovery]) == [first, recovery, follower, table]
    assert in_order([]) == []


class Reader(RunCallback):
    """Takes what another has measured, where it is present."""

    uses = (Throughput,)


def test_what_is_used_comes_before_and_need_not_be_there():
    reader, throughput = Reader(), Throughput()
    assert in_order([reader, throughput]) == [throughput, reader]
    assert in_order([reader]) == [reader]


def test_what_is_missing_or_circular_is_named():
    with pytest.raises(ValueError, match="Lonely needs Throughput, which is not among the callbacks"):
        in_order([Lonely(), ConceptRecovery()])
    with pytest.raises(ValueError, match="callbacks must not need each other, but Circular, Circular do"):
        in_order([Circular(), Circular()])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([RecoveryTable()], "RecoveryTable needs ConceptRecovery, which is not among the callbacks"),
        ([Lonely()], "Lonely needs Throughput, which is not among the callbacks"),
        ([Follower(), ConceptRecovery()], "ConceptRecovery must run before Follower, which needs it: list it first"),
    ],
)
def test_a_trainer_made_in_python_is_checked(given, message):
    data = SeparabilityDataModule(n_per_concept=64, n_val_per_concept=8, n_test_per_concept=8, batch_size=32, seed=0)
    trainer = pl.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, callbacks=given)
    with pytest.raises(ValueError, match=message):
        trainer.fit(SpaDE(2, 8), datamodule=data)


def test_a_model_that_is_not_served_is_named():
    model = LanguageModel(grammar_text=GRAMMAR, n_positions=16, width=8, n_layers=1, n_heads=2)
    trainer = pl.Trainer(accelerator="cpu", barebones=True)
    with pytest.raises(ValueError, match="RecoveryTable works with SAEModule, but the model is LanguageModel"):
        RecoveryTable().setup(trainer, model, "fit")


SMALL = ["--data", "SeparabilityDataModule", "--data.n_per_concept", 64, "--data.n_val_per_concept", 8]
SMALL += ["--data.n_test_per_concept", 8, "--data.batch_size", 32, "--model", "SpaDE", "--model.d_sae", 8]
SMALL += ["--trainer.max_steps", 2, *QUIET]


def test_a_callback_of_ones_own_runs_after_what_it_needs(tmp_path):
    own = ["--trainer.callbacks+", f"{__name__}.Follower", "--run_dir", tmp_path / "run"]
    outcome = run_cli("fit", *SMALL, *own)
    assert outcome.code == 0, outcome.err[-2000:]
    assert "measured before: True" in outcome.out
    assert "measured before: False" not in outcome.out


def test_the_command_line_names_what_is_missing(tmp_path):
    outcome = run_cli("fit", *SMALL, "--trainer.callbacks+", f"{__name__}.Lonely", "--run_dir", tmp_path / "run")
    assert outcome.code == 2
    assert outcome.err.strip().endswith("error: Lonely needs Throughput, which is not among the callbacks")
    assert not (tmp_path / "run").exists()
