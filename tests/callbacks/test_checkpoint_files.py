"""Checkpoints that are damaged: noticed wherever the damage is, and replaced by an older one where training goes on."""

import random
import shutil

import pytest
import torch

from sae_lightning import SeparabilityDataModule, SpaDE
from sae_lightning.callbacks import RunCheckpoint
from sae_lightning.callbacks.checkpoint_files import newest_checkpoint, read_older, step_of
from sae_lightning.run.checkpoint import read_checkpoint
from tests.helpers.resuming import arguments
from tests.helpers.runs import contents, run_cli
from tests.helpers.trainers import make_trainer

CUT, FLIPPED, EMPTY, MISSING = "cut", "flipped", "empty", "missing"
DAMAGE = (CUT, FLIPPED, EMPTY, MISSING)


def damage(path, kind):
    """Damage a file, or what a link points to."""
    path = path.resolve()
    data = bytearray(path.read_bytes())
    if kind == MISSING:
        path.unlink()
        return
    if kind == FLIPPED:  # a bit of a weight: the format stays as it was
        name = next(k for k, v in read_checkpoint(path)["state_dict"].items() if v.numel() > 8)
        weights = read_checkpoint(path)["state_dict"][name].numpy().tobytes()
        data[data.index(weights) + 5] ^= 0x20
    path.write_bytes({CUT: data[: len(data) // 2], FLIPPED: data, EMPTY: b""}[kind])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that ended after 20 steps: read it only."""
    run_dir = tmp_path_factory.mktemp("run") / "run"
    outcome = run_cli(*arguments("spade", run_dir), "--trainer.max_steps", 20)
    assert outcome.code == 0, outcome.err[-2000:]
    assert {path.name for path in (run_dir / "checkpoints").iterdir()} == {"last.ckpt", "step=14.ckpt", "step=20.ckpt"}
    return run_dir


@pytest.fixture
def copied(run, tmp_path):
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("kind", "name"), [*((kind, "last.ckpt") for kind in DAMAGE), (CUT, "step=20.ckpt"), (FLIPPED, "step=20.ckpt")]
)
def test_training_goes_on_from_the_checkpoint_before_a_damaged_one(kind, name, copied):
    folder = copied / "checkpoints"
    args = arguments("spade", copied)[:-2]
    damage(folder / name, kind)
    outcome = run_cli(*args, "--ckpt_path", folder / name, "--trainer.max_steps", 24)
    assert outcome.code == 0, outcome.err[-2000:]
    (warning,) = [text for text in outcome.warnings if "is damaged" in text]
    assert f"{str(folder / name)!r} (step 20) is damaged" in warning
    assert f"training resumes from {str(folder / 'step=14.ckpt')!r} (step 14)" in warning
    assert read_checkpoint(folder / "last.ckpt")["global_step"] == 24
    steps = [int(line.split(",")[1]) for line in (copied / "metrics.csv").read_text().splitlines()[1:]]
    assert steps == sorted(steps)


def test_what_is_trained_from_the_older_one_is_what_was_trained_before(run, copied):
    damage(copied / "checkpoints" / "last.ckpt", FLIPPED)
    args = [*arguments("spade", copied), "--trainer.max_steps", 20]
    assert run_cli(*args).code == 0
    found, expected = (read_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (copied, run))
    assert found["state_dict"].keys() == expected["state_dict"].keys()
    assert all(torch.equal(value, found["state_dict"][key]) for key, value in expected["state_dict"].items())
    assert (copied / "metrics.csv").read_text() == (run / "metrics.csv").read_text()


@pytest.mark.parametrize("kind", DAMAGE)
def test_without_a_whole_checkpoint_the_run_is_refused(kind, copied):
    args = arguments("spade", copied)
    for path in (copied / "checkpoints").glob("step=*.ckpt"):
        damage(path, CUT if path.name == "step=14.ckpt" else kind)
    before = contents(copied)
    outcome = run_cli(*args)
    assert outcome.code == 2
    assert str(copied / "checkpoints" / "last.ckpt") in outcome.err
    assert "Traceback" not in outcome.err
    assert contents(copied) == before


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_other_weights_are_never_tested_silently(command, copied):
    folder = copied / "checkpoints"
    damage(folder / "last.ckpt", FLIPPED)
    args = [*arguments("spade", copied)[1:-2], "--ckpt_path", folder / "last.ckpt", "--run_dir", copied / "other"]
    fits = (
        "--trainer",
        "--checkpoint",
        "--figures",
        "--progress",
        "--visibility",
        "--data",
        "-c",
        "--run_dir",
        "--ckpt_path",
    )
    assert all(str(arg).startswith(fits) for arg in args[::2])
    outcome = run_cli(command, *args)
    assert outcome.code == 2
    assert "cannot be read" in outcome.err
    assert f"an older checkpoint of this run is intact: {str(folder / 'step=14.ckpt')!r}" in outcome.err
    assert not (copied / "other").exists()


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory .* exists and is not empty")  # as it must be here
def test_a_trainer_in_python_refuses_a_damaged_checkpoint(tmp_path):
    data = SeparabilityDataModule(n_per_concept=100, n_val_per_concept=10, n_test_per_concept=10, batch_size=16, seed=0)

    def trainer(steps):
        return make_trainer(steps, callbacks=[RunCheckpoint(str(tmp_path), every_n_steps=2)])

    trainer(4).fit(SpaDE(2, 8, n_init_samples=64), data)
    damage(tmp_path / "step=4.ckpt", FLIPPED)
    with pytest.raises(ValueError, match=r"another checksum.*an older checkpoint of this run is intact: .*=2\.ckpt"):
        trainer(6).fit(SpaDE(2, 8, n_init_samples=64), data, ckpt_path=str(tmp_path / "last.ckpt"))
    last = trainer(6)
    last.fit(SpaDE(2, 8, n_init_samples=64), data, ckpt_path=str(tmp_path / "step=2.ckpt"))
    assert last.global_step == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.ckpt", "step=4.ckpt", "step=6.ckpt"]


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(run, tmp_path):
    """Bytes between the parts of the file hold nothing; everywhere else a flip is an error."""
    whole = read_checkpoint(run / "checkpoints" / "last.ckpt")
    data = (run / "checkpoints" / "last.ckpt").read_bytes()
    path, draw, noticed = tmp_path / "step=1.ckpt", random.Random(0), 0
    for _ in range(60):
        flipped = bytearray(data)
        flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            found = read_checkpoint(path)
        except ValueError:
            noticed += 1
            continue
        assert all(torch.equal(value, found["state_dict"][key]) for key, value in whole["state_dict"].items())
        assert found["loops"] == whole["loops"]
    assert noticed > 20


def test_names(tmp_path):
    (tmp_path / "last.ckpt").symlink_to("step=9.ckpt")
    assert step_of(tmp_path / "last.ckpt") == 9
    assert step_of(tmp_path / "step=10.ckpt") == 10
    assert step_of(tmp_path / "epoch=1-step=10.ckpt") is None
    assert newest_checkpoint(tmp_path) is None
    assert read_older(tmp_path / "other.ckpt") is None
