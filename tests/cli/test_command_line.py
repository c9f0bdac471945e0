"""What a user may type, and what the command line makes of it: limits, folders, classes of one's own, mistakes."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import sae_lightning
from sae_lightning import load_results, load_sae
from sae_lightning.cli.resume import data_changes
from sae_lightning.run.checkpoint import read_checkpoint
from tests.helpers.runs import (
    CONFIGS,
    DATA_ARGS,
    MODEL,
    QUIET,
    ROOT,
    TINY,
    contents,
    fast,
    last,
    process_environment,
    refused,
    rows,
    run_cli,
)

SHORT = [*MODEL, *DATA_ARGS, *QUIET, "--figures.on_validation", "false", "--trainer.num_sanity_val_steps", 0]


def activations(folder, n=400, d_in=8, seed=0):
    path = folder / "x.npy"
    np.save(path, np.random.default_rng(seed).standard_normal((n, d_in), dtype=np.float32))
    return path


# ---------------------------------------------------------------------- how long


@pytest.mark.parametrize(
    ("limits", "steps"),
    [
        (["--trainer.max_steps", 40], 40),
        (["--trainer.max_epochs", 3], 30),
        (["--trainer.max_steps", 15, "--trainer.max_epochs", 3], 15),
        (["--trainer.max_steps", 40, "--trainer.max_epochs", 2], 20),
        ([], 10),
    ],
    ids=["steps", "epochs", "steps first", "epochs first", "neither"],
)
def test_the_limit_that_is_given_decides(limits, steps, tmp_path):
    path = activations(tmp_path)  # 320 for training: epochs of 10 steps
    data = ["--data", "TensorDataModule", "--data.path", path, "--data.batch_size", 32]
    outcome = run_cli("fit", *MODEL, *data, *QUIET, *limits, "--run_dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert load_results(tmp_path / "run/results.json")["fit"]["steps"] == steps


def test_max_time_is_a_limit_too(tmp_path):
    path = activations(tmp_path)
    data = ["--data", "TensorDataModule", "--data.path", path, "--data.batch_size", 32]
    limits = ["--trainer.max_time", "00:00:00:02"]
    outcome = run_cli("fit", *MODEL, *data, *QUIET, *limits, "--run_dir", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert load_results(tmp_path / "run/results.json")["fit"]["steps"] > 0
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["trainer"]["max_epochs"] == -1


# ---------------------------------------------------------------------- configs


def test_a_config_never_overrides_the_command_line(tiny, tmp_path):
    """The config of a run says `ckpt_path: null`, and names its folder."""
    config = tiny / "config.yaml"
    assert yaml.safe_load(config.read_text())["ckpt_path"] is None
    for order in (0, 1):
        run_dir = tmp_path / f"test-{order}"
        given = ["--ckpt_path", last(tiny), "--run_dir", run_dir, "--recovery.top_n", 2]
        args = [*given, "-c", config] if order else ["-c", config, *given]
        outcome = run_cli("test", *args)
        assert outcome.code == 0, outcome.err
        saved = yaml.safe_load((run_dir / "config-test.yaml").read_text())
        assert (saved["ckpt_path"], saved["recovery"]["top_n"]) == (str(last(tiny)), 2)
    (tmp_path / "overlay.yaml").write_text("recovery: {top_n: 3}\ncheckpoint: {keep: 3}\n")
    args = [
        "fit",
        *TINY,
        "-c",
        config,
        "--recovery.top_n",
        4,
        f"--config={tmp_path / 'overlay.yaml'}",
        "--print_config",
    ]
    printed = yaml.safe_load(run_cli(*args).out)
    assert (printed["recovery"]["top_n"], printed["checkpoint"]["keep"]) == (4, 3)


def test_shipped_configs_are_known_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_cli("configs")
    assert outcome.code == 0
    names = [line.split()[0] for line in outcome.out.splitlines()]
    assert set(names) == {path.relative_to(CONFIGS).with_suffix("").as_posix() for path in CONFIGS.rglob("*.yaml")}
    assert re.search(r"^separability/compare\s+SpaDE and its three rivals", outcome.out, re.MULTILINE)
    args = ["-c", "separability/spade", "--config", "debug/fast.yaml", "--run_dir", "run", *QUIET]
    outcome = run_cli("fit", *args, "--trainer.max_steps", 3)
    assert outcome.code == 0, outcome.err
    assert Path("run/checkpoints/step=3.ckpt").is_file()
    # a file of the user's comes first
    Path("debug").mkdir()
    Path("debug/fast.yaml").write_text("trainer: {max_steps: 2}\n")
    printed = run_cli("fit", "-c", "separability/spade", "-c", "debug/fast.yaml", "--print_config").out
    assert yaml.safe_load(printed)["trainer"]["max_steps"] == 2


def test_shipped_configs_find_their_files_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = ["-c", "formal_language/gpt", "--trainer.max_steps", 2, "--data.n_val", 20, "--data.n_test", 20]
    args += ["--model.width", 8, "--model.n_layers", 1, "--model.lr_scheduler", "null", "--grammar.n_samples", 5]
    outcome = run_cli("fit", *args, *QUIET, "--run_dir", "lm")
    assert outcome.code == 0, outcome.err


def test_shipped_configs_can_be_copied_and_changed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_cli("configs", "--copy", "mine").code == 0
    assert contents(tmp_path / "mine") == contents(CONFIGS)
    refused(run_cli("configs", "--copy", "mine"), "--copy must name a new or empty folder, but 'mine' is not")
    refused(run_cli("configs", "--kopy"), "configs takes only --copy DIR, but was given '--kopy'")
    assert run_cli("configs", "--help").code == 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("model: [", ["'mine.yaml' must be a YAML file, but is not: while parsing", "line 1"]),
        (b"trainer: {max_steps: 3} # \xe9", ["'mine.yaml' must be UTF-8, but its byte 26 (in line 1) is not"]),
        (None, ["there is no file 'mine.yaml', nor a shipped config of that name", "`sae-lightning configs` lists"]),
    ],
    ids=["yaml", "latin", "missing"],
)
@pytest.mark.parametrize("command", ["fit", "diagnose"])
def test_a_broken_config_is_named(content, words, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("mine.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    message = refused(run_cli(command, *(TINY if command == "fit" else []), "-c", "mine.yaml"))
    assert all(word in message for word in words), message


def test_a_misspelt_argument_in_a_config_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("trainerr: {max_steps: 3}")
    message = refused(run_cli("fit", *TINY, "-c", tmp_path / "mine.yaml"))
    assert "there is no argument --trainerr.max_steps: did you mean --trainer.max_steps?" in message


# ---------------------------------------------------------------------- folders


def start(*args):
    command = [sys.executable, "-m", "sae_lightning", *map(str, args)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=process_environment()
    )


@pytest.fixture
def living(tmp_path):
    """A run that goes on until it is ended."""
    run_dir = tmp_path / "run"
    endless = [*TINY, "--trainer.max_steps", 10**7, "--checkpoint.every_n_steps", 5]
    with start("fit", *endless, "--run_dir", run_dir) as process:
        deadline = time.monotonic() + 90
        try:
            while not last(run_dir).exists():
                assert process.poll() is None, process.communicate()[1][-3000:]
                assert time.monotonic() < deadline
                time.sleep(0.1)
            yield process, run_dir
        finally:
            process.kill()


def test_a_living_run_keeps_its_folder_and_a_dead_one_does_not(living):
    process, run_dir = living
    message = f"run_dir {str(run_dir)!r} is in use by process {process.pid} on "
    for command, more in (
        ("fit", ["--overwrite", "true"]),
        ("fit", ["--ckpt_path", last(run_dir)]),
        ("test", ["--ckpt_path", last(run_dir)]),
    ):
        refused(run_cli(command, *TINY, "--run_dir", run_dir, *more), message)
    # another folder may be written from its checkpoint meanwhile
    assert run_cli("test", *TINY, "--ckpt_path", last(run_dir), "--run_dir", run_dir.parent / "test").code == 0
    os.kill(process.pid, signal.SIGSTOP)  # also one that stands still
    refused(run_cli("fit", *TINY, "--run_dir", run_dir, "--overwrite", "true"), message)
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (run_dir / ".lock").exists()  # stale, and no obstacle
    outcome = run_cli("test", *TINY, "--ckpt_path", last(run_dir))
    assert outcome.code == 0, outcome.err
    assert not (run_dir / ".lock").exists()


@pytest.mark.slow
def test_of_two_that_start_at_once_one_runs(tmp_path):
    """Whichever is second is told; the curve is that of one run."""
    run_dir = tmp_path / "run"
    args = ["fit", *TINY, "--overwrite", "true", "--trainer.max_steps", 300, "--trainer.val_check_interval", 100]
    args += ["--trainer.check_val_every_n_epoch", "null"]
    both = [start(*args, "--run_dir", run_dir, "--seed_everything", seed) for seed in (1, 2)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) in ([0, 2], [0, 0]), errors  # or one after the other
    if codes != [0, 0]:
        assert "is in use by process" in errors[codes.index(2)]
    steps = [int(row["step"]) for row in rows(run_dir) if row["train/loss"]]
    assert steps == sorted(set(steps))
    seed = load_results(run_dir / "results.json")["fit"]["seed"]
    assert seed == yaml.safe_load((run_dir / "config.yaml").read_text())["seed_everything"]
    assert codes != [0, 2] or seed == 1
    assert codes != [2, 0] or seed == 2


SHORT_CYCLE = ["--model.lr_scheduler", "torch.optim.lr_scheduler.OneCycleLR", "--model.lr_scheduler.max_lr", 0.1]
SHORT_CYCLE += ["--model.lr_scheduler.total_steps", 9]
CANNOT_BEGIN = {
    "batch": (["--data.batch_size", 5000], "at least one batch of batch_size"),
    "learning rate": (
        ["--model.optimizer", "torch.optim.Adam", "--model.optimizer.lr", -1],
        "model.optimizer cannot be made: Invalid learning rate: -1.0",
    ),
    "schedule": (
        SHORT_CYCLE,
        "model.lr_scheduler OneCycleLR must not end before training does, but its total_steps are 9, and training "
        "takes 10 steps",
    ),
    "d_in": (["--model.d_in", 99], "--model.d_in must be that of the data, 2, but is 99"),
}


@pytest.mark.parametrize("case", CANNOT_BEGIN)
def test_a_run_that_cannot_begin_loses_nothing(case, tiny, tmp_path):
    """Found when training starts, in words, and the run that was to be replaced is as it was."""
    import shutil

    args, words = CANNOT_BEGIN[case]
    shutil.copytree(tiny, tmp_path / "run", symlinks=True)
    before = contents(tmp_path / "run")
    refused(run_cli("fit", *TINY, *args, "--run_dir", tmp_path / "run", "--overwrite", "true"), words)
    assert contents(tmp_path / "run") == before
    refused(run_cli("fit", *TINY, *args, "--run_dir", tmp_path / "new"), words)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.ones((400, 8)), "activations must differ between samples, but all 400 in"),
        (np.ones((1, 8)), "activations must hold at least two samples"),
        ("outlier", "standardization needs training samples of comparable size"),
        ("nan", "holds nan at row 3, feature 2"),
        (np.zeros((400, 0)), "activations must have at least one feature"),
    ],
    ids=["constant", "one sample", "outlier", "nan", "no features"],
)
def test_activations_that_nothing_can_be_trained_on_are_refused(array, words, tmp_path):
    if isinstance(array, str):
        value = {"outlier": 1e30, "nan": np.nan}[array]
        array = np.random.default_rng(0).standard_normal((400, 8))
        array[3, 2] = value
    np.save(tmp_path / "x.npy", array.astype(np.float32))
    data = ["--data", "TensorDataModule", "--data.path", tmp_path / "x.npy", "--data.batch_size", 32]
    model = ["--model", "SpaDE", "--model.d_sae", 8]
    refused(run_cli("fit", *model, *data, *QUIET, "--run_dir", tmp_path / "run"), words)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "model", ["SpaDE", *(pytest.param(name, marks=pytest.mark.slow) for name in ("ReLUSAE", "JumpReLUSAE", "TopKSAE"))]
)
@pytest.mark.parametrize("factor", [1e36, 1e-36])
def test_activations_of_any_size_are_trained_on_as_of_size_one(model, factor, tmp_path):
    x = np.random.default_rng(0).standard_normal((400, 8))
    found = {}
    for size in (1.0, factor):
        np.save(tmp_path / "x.npy", (x * size).astype(np.float32))
        args = ["--model", model, "--model.d_sae", 16, "--data", "TensorDataModule", "--data.path", tmp_path / "x.npy"]
        args += ["--data.batch_size", 32, *QUIET, "--overwrite", "true", "--run_dir", tmp_path / "run"]
        args += ["--model.k", 4] if model == "TopKSAE" else []
        outcome = run_cli("fit", *args)
        assert outcome.code == 0, outcome.err
        outcome = run_cli("test", *args, "--ckpt_path", last(tmp_path / "run"))
        assert outcome.code == 0, outcome.err
        found[size] = load_results(tmp_path / "run/results.json")["test"]["metrics"]
    for key, value in found[1.0].items():
        assert found[factor][key] == pytest.approx(value, rel=0.02, abs=0.02), key


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_a_runs_folder_holds_everything_whatever_the_logger(logger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    args = [*TINY, "--trainer.logger", logger, "--run_dir", "run"]
    assert run_cli("fit", *args).code == 0
    assert run_cli("test", *args, "--ckpt_path", "run/checkpoints/last.ckpt").code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    files = set(contents(tmp_path / "run"))
    assert {"config.yaml", "results.json", "results.md", "report.html", "checkpoints/last.ckpt"} <= files
    assert "figures/test/concept_f1.png" in files
    assert any(file.startswith("lightning_logs/") for file in files)
    assert load_results("run/results.json").keys() == {"model", "fit", "test"}
    # the folder of a logger may be elsewhere, the run's is not
    assert (
        run_cli("fit", *TINY, "--trainer.logger", logger, "--trainer.logger.save_dir", "logs", "--run_dir", "b").code
        == 0
    )
    assert {"config.yaml", "results.json", "checkpoints/last.ckpt"} <= set(contents(tmp_path / "b"))


# ---------------------------------------------------------------------- resuming


def resumed(run_dir, *args, steps=20):
    return run_cli(
        "fit", *TINY, "--run_dir", run_dir, "--ckpt_path", last(run_dir), "--trainer.max_steps", steps, *args
    )


@pytest.fixture
def run(tiny, tmp_path):
    import shutil

    shutil.copytree(tiny, tmp_path / "run", symlinks=True)
    return tmp_path / "run"


def test_what_changes_no_sample_may_change_on_resume(run):
    outcome = resumed(run, "--data.num_workers", 1, "--data.eval_batch_size", 7)
    assert outcome.code == 0, outcome.err
    assert not [text for text in outcome.warnings if "other data" in text]
    refused(resumed(run, "--data.batch_size", 8, steps=30), "data.batch_size was 16 and is 8")


def test_data_are_compared_by_class_whatever_its_import_path():
    def described(class_path, **arguments):
        return {"class_path": class_path, "init_args": {"batch_size": 16, **arguments}}

    stored = described("sae_lightning.TensorDataModule", path="x.npy")
    assert list(data_changes(stored, described("sae_lightning.data.TensorDataModule", path="x.npy"))) == []
    assert list(data_changes(stored, described("sae_lightning.data.TensorDataModule", path="y.npy"))) == [
        "data.path was 'x.npy' and is 'y.npy'"
    ]
    other = described("sae_lightning.data.SeparabilityDataModule", seed=3)
    assert list(data_changes(stored, other)) == [f"data was {stored['class_path']} and is {other['class_path']}"]
    assert len(list(data_changes(stored, described("mine.TensorDataModule", path="x.npy")))) == 1


ADAM = ["--model.optimizer", "torch.optim.Adam", "--model.optimizer.fused", "true"]
CHANGED = {
    "optimizer": (
        ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", 0.1],
        ["torch.optim.adam.Adam", "SGD"],
    ),
    "schedule": (
        [*ADAM, "--model.lr_scheduler", "torch.optim.lr_scheduler.ExponentialLR", "--model.lr_scheduler.gamma", 0.9],
        ["model.lr_scheduler must be that of the checkpoint, None, but is torch.optim.lr_scheduler.ExponentialLR"],
    ),
}


@pytest.mark.parametrize("case", CHANGED)
def test_another_optimizer_or_schedule_on_resume_is_refused(case, run):
    args, words = CHANGED[case]
    before = contents(run)
    refused(resumed(run, *args), *words)
    assert contents(run)["checkpoints/last.ckpt"] == before["checkpoints/last.ckpt"]


def test_another_learning_rate_on_resume_is_used_and_said(run):
    outcome = resumed(run, *ADAM, "--model.optimizer.lr", 0.5)
    assert outcome.code == 0, outcome.err
    (warning,) = [text for text in outcome.warnings if "instead of" in text]
    assert warning == "training continues with lr = 0.5 instead of 0.001 in the optimizer"
    assert read_checkpoint(last(run))["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    rates = [float(row["train/lr"]) for row in rows(run) if row["train/lr"]]
    assert rates == pytest.approx([0.001, 0.001, 0.5, 0.5])


def test_a_schedule_goes_on_from_another_learning_rate(tmp_path):
    """Halved at step 10 of 20, it is half of what it would have been from there."""
    run_dir = tmp_path / "run"
    cosine = [
        *ADAM,
        "--model.lr_scheduler",
        "torch.optim.lr_scheduler.CosineAnnealingLR",
        "--model.lr_scheduler.T_max",
        20,
    ]
    common = ["fit", *TINY, *cosine, "--trainer.log_every_n_steps", 1]
    assert (
        run_cli(*common, "--model.optimizer.lr", 0.2, "--trainer.max_steps", 20, "--run_dir", tmp_path / "whole").code
        == 0
    )
    assert run_cli(*common, "--model.optimizer.lr", 0.2, "--run_dir", run_dir).code == 0
    args = ["--model.optimizer.lr", 0.1, "--run_dir", run_dir, "--ckpt_path", last(run_dir), "--trainer.max_steps", 20]
    assert run_cli(*common, *args).code == 0
    whole, parts = (
        [float(row["train/lr"]) for row in rows(run) if row["train/lr"]] for run in (tmp_path / "whole", run_dir)
    )
    assert parts[:10] == whole[:10]
    assert parts[10:] == pytest.approx([lr / 2 for lr in whole[10:]], rel=1e-6)
    refused(
        run_cli(*common, *args, "--model.lr_scheduler.T_max", 30), "model.lr_scheduler must have T_max = 20", "has 30"
    )


def test_a_schedule_that_has_ended_is_no_way_to_go_on(tmp_path):
    run_dir = tmp_path / "run"
    cycle = [*ADAM, "--model.lr_scheduler", "torch.optim.lr_scheduler.OneCycleLR", "--model.lr_scheduler.max_lr", 0.1]
    cycle += ["--model.lr_scheduler.total_steps", 10]
    assert run_cli("fit", *TINY, *cycle, "--run_dir", run_dir).code == 0
    before = contents(run_dir / "checkpoints")
    refused(resumed(run_dir, *cycle), "total_steps are 10, and training takes 20 steps")
    assert contents(run_dir / "checkpoints") == before


# ---------------------------------------------------------------------- classes of one's own

MINE = """
import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

from sae_lightning.modules import SpaDE
from sae_lightning.nn import Projection


class AbsTopK(Projection):
    \\"\\"\\"Keeps the codes of largest magnitude.\\"\\"\\"

    def __init__(self, d_sae: int, k: int = 3) -> None:
        super().__init__(d_sae)
        self.k = k

    def forward(self, pre_codes: torch.Tensor) -> torch.Tensor:
        chosen = pre_codes.abs().topk(self.k, dim=-1).indices
        return torch.zeros_like(pre_codes).scatter(-1, chosen, pre_codes.gather(-1, chosen))


class MySpaDE(SpaDE):
    \\"\\"\\"A user's own.\\"\\"\\"


class Plain(pl.LightningDataModule):
    \\"\\"\\"Activations in no form of ours.\\"\\"\\"

    def __init__(self, labelled: bool = False, named: bool = False, width: int = 6) -> None:
        super().__init__()
        self.labelled = labelled
        self.width = width
        if named:
            self.concept_names = ["a", "b", "c"]

    def setup(self, stage=None):
        generator = torch.Generator().manual_seed(0)
        labels = torch.randint(3, (300,), generator=generator)
        x = torch.randn(300, self.width, generator=generator) + 4 * torch.nn.functional.one_hot(labels, self.width)
        self.data = TensorDataset(x, labels) if self.labelled else TensorDataset(x)

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=30, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.data, batch_size=70)

    test_dataloader = predict_dataloader = val_dataloader


class Words(Plain):
    \\"\\"\\"Batches that are no activations.\\"\\"\\"

    def train_dataloader(self):
        return DataLoader([{"text": "a"}] * 8, batch_size=4)


class Images(Plain):
    \\"\\"\\"Batches of another rank.\\"\\"\\"

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(8, 1, 4, 4)), batch_size=4)
""".replace('\\"', '"')


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The current folder, with a module of the user's."""
    (tmp_path / "mine_for_test.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine_for_test", None)


def test_a_class_of_the_current_folder_is_found(here):
    """By the installed command, whose own folder is another one."""
    script = Path(sys.executable).with_name("sae-lightning")
    args = ["--model", "mine_for_test.MySpaDE", "--model.d_sae", 8, "--model.n_init_samples", 64, *DATA_ARGS, *QUIET]
    command = [script, "fit", *args, "--trainer.max_steps", 3, "--run_dir", "run"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=here, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    composed = ["--model", "ComposedSAE", "--model.d_sae", 8, "--model.encoder", "sae_lightning.nn.Affine"]
    composed += ["--model.projection", "mine_for_test.AbsTopK", "--model.projection.k", 2]
    assert run_cli("fit", *composed, *DATA_ARGS, *QUIET, "--trainer.max_steps", 3, "--run_dir", "composed").code == 0
    assert (load_sae("composed/checkpoints/last.ckpt").encode(__import__("torch").randn(9, 2)) != 0).sum(
        -1
    ).tolist() == [2] * 9


@pytest.mark.parametrize("labels", ["none", "unnamed", "named"])
def test_any_data_module_of_activations_is_accepted(labels, here):
    data = [
        "--data",
        "mine_for_test.Plain",
        "--data.labelled",
        str(labels != "none"),
        "--data.named",
        str(labels == "named"),
    ]
    args = ["--model", "TopKSAE", "--model.d_sae", 12, "--model.k", 2, *data, *QUIET, "--trainer.max_steps", 25]
    outcome = run_cli("fit", *args, "--run_dir", "run")
    assert outcome.code == 0, outcome.err
    lacking = [text for text in outcome.warnings if "has no `concept_names`" in text]
    assert len(lacking) == (labels == "unnamed")
    sae = load_sae("run/checkpoints/last.ckpt")
    assert sae.d_in == 6
    for command in ("validate", "test", "predict"):
        outcome = run_cli(command, *args, "--ckpt_path", "run/checkpoints/last.ckpt")
        assert outcome.code == 0, outcome.err
    metrics = load_results("run/results.json")["test"]["metrics"]
    assert metrics["test/l0"] <= 2
    assert ("test/f1/b" in metrics) == (labels == "named")
    outcome = run_cli(
        "fit", *args, "--ckpt_path", "run/checkpoints/last.ckpt", "--trainer.max_steps", 28, "--run_dir", "run"
    )
    assert outcome.code == 0, outcome.err
    assert [text for text in outcome.warnings if "does not say where it stands" in text]


@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (
            "Words",
            ["--data Words cannot be read as activations: a batch must be an ActivationBatch, a tensor", "but is dict"],
        ),
        (
            "Images",
            [
                "--data Images must yield activations of shape (batch, d_in), or (batch, input_layers, d_in)",
                "but yields (4, 1, 4, 4)",
            ],
        ),
    ],
)
def test_data_that_are_no_activations_are_refused(cls, words, here):
    args = ["--model", "TopKSAE", "--model.d_sae", 12, "--data", f"mine_for_test.{cls}", *QUIET]
    refused(run_cli("fit", *args, "--run_dir", "run"), *words)
    assert not (here / "run").exists()


def test_data_of_another_width_than_a_checkpoints_are_refused(here):
    args = [
        "--model",
        "ReLUSAE",
        "--model.d_sae",
        12,
        "--data",
        "mine_for_test.Plain",
        *QUIET,
        "--trainer.max_steps",
        3,
    ]
    assert run_cli("fit", *args, "--run_dir", "run").code == 0
    outcome = run_cli("test", *args, "--data.width", 7, "--ckpt_path", "run/checkpoints/last.ckpt", "--run_dir", "test")
    refused(outcome, "inputs must have d_in = 6 in their last dimension, but have shape (70, 7)")


@pytest.mark.parametrize("d_in", [1, 99])
@pytest.mark.parametrize("command", ["fit", "test"])
def test_sizes_that_contradict_the_data_are_refused(d_in, command, tiny, tmp_path):
    args = [*TINY, "--model.d_in", d_in, "--run_dir", tmp_path / "run"]
    args += [] if command == "fit" else ["--ckpt_path", last(tiny)]
    refused(run_cli(command, *args), f"--model.d_in must be that of the data, 2, but is {d_in}")
    assert run_cli("fit", *SHORT, "--model.d_in", 2, "--trainer.max_steps", 2, "--run_dir", tmp_path / "run").code == 0


# ---------------------------------------------------------------------- mistakes in one line

MODEL_ARGS = ["--model", "SpaDE", "--model.d_sae", 8]
ONE_LINE = {
    "missing argument": (["--model", "TopKSAE", *DATA_ARGS], "--model TopKSAE needs --model.d_sae"),
    "two missing": (
        ["--model", "ComposedSAE", "--model.d_sae", 8, *DATA_ARGS],
        "--model.encoder and --model.projection",
    ),
    "misspelt class": (["--model", "TopKSEA", *DATA_ARGS], "there is no class 'TopKSEA': did you mean TopKSAE?"),
    "misspelt data": ([*MODEL_ARGS, "--data", "Separability"], "'Separability': did you mean SeparabilityDataModule?"),
    "misspelt argument": (
        [*MODEL_ARGS, *DATA_ARGS, "--model.dsae", 3],
        "no argument 'dsae': did you mean --model.d_sae?",
    ),
    "misspelt data argument": ([*MODEL_ARGS, *DATA_ARGS, "--data.batchsize", 3], "did you mean --data.batch_size?"),
    "misspelt trainer argument": ([*TINY, "--trainer.max_stepz", 3], "did you mean --trainer.max_steps?"),
    "misspelt callback": (
        [*TINY, "--trainer.callbacks+=Thruput"],
        "there is no class 'Thruput': did you mean Throughput?",
    ),
    "wrong type": ([*TINY, "--trainer.max_steps", "many"], "--trainer.max_steps must be of type int, but is 'many'"),
    "wrong choice": (
        [*TINY, "--model.init", "zeros"],
        "--model.init must be one of 'data', 'unit', 'normal', but is 'zeros'",
    ),
    "no module": (
        ["--model", "no_such.Thing", *DATA_ARGS],
        "there is no module 'no_such', neither installed nor in the",
    ),
    "no class of data": (
        [*MODEL_ARGS, "--data", "torch.nn.Linear"],
        "--data must be a class that derives from Lightning",
    ),
    "optimizer": ([*TINY, "--model.optimizer", "torch.optim.Adm"], "module 'torch.optim' has no attribute 'Adm'"),
    "schedule": (
        [*TINY, "--model.lr_scheduler", "torch.optim.lr_scheduler.StepLR"],
        "StepLR needs --model.lr_scheduler.st",
    ),
    "base class": (
        ["--model", "BaseSAE", *DATA_ARGS],
        "--model BaseSAE is a base class of others: choose from Comparison",
    ),
    "a rate that is no number": (
        [*MODEL_ARGS, "--model.optimizer", "Adam", "--model.optimizer.lr", "nan"],
        "--model.optimizer.lr must be a finite number, but is nan",
    ),
    "abstract data": ([*MODEL_ARGS, "--data", "ActivationDataModule"], "is a base class of others: choose from Cached"),
    "no data": (MODEL_ARGS, "--data must be given"),
}


@pytest.mark.parametrize("case", ONE_LINE)
def test_a_mistake_is_told_in_one_line(case, tmp_path):
    args, words = ONE_LINE[case]
    message = refused(run_cli("fit", *args, "--run_dir", tmp_path / "run"), words)
    assert message.startswith("error: ")
    assert message.count("\n") == 1
    assert message.endswith("(`sae-lightning fit --help` names every argument)\n")
    assert "Namespace" not in message


def test_mistakes_of_other_commands_are_told_in_one_line_too():
    for command, args, words in (
        ("harvest", [], "--host and --source and --layers and --output must be given"),
        ("harvest", ["--host", "TextHots"], "there is no class 'TextHots': did you mean TextHost?"),
        ("diagnose", ["--data", "TensorData"], "there is no class 'TensorData': did you mean TensorDataModule?"),
        ("diagnose", [], "--data must be given"),
    ):
        message = refused(run_cli(command, *args), words)
        assert message.count("\n") == 1
        assert message.endswith(f"(`sae-lightning {command} --help` names every argument)\n")


def test_the_command_alone_lists_the_commands():
    for args in ((), ("--help",), ("-h",)):
        outcome = run_cli(*args)
        assert outcome.code == 0
        for command in ("fit", "validate", "test", "predict", "diagnose", "harvest", "configs"):
            assert re.search(rf"^  {command} +\w", outcome.out, re.MULTILINE), command
    assert run_cli("--version").out == f"sae-lightning {sae_lightning.__version__}\n"
    refused(run_cli("fitt"), "there is no command 'fitt': did you mean fit?")
    refused(run_cli("frobnicate"), "there is no command 'frobnicate': choose from fit, validate")


def test_the_overview_needs_no_heavy_library():
    code = "import sys; from sae_lightning.cli import main; main([]); main(['--version'])\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


# ---------------------------------------------------------------------- what is printed


@pytest.mark.slow
def test_training_ends_with_table_page_and_the_literal_next_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = run_cli("fit", *fast("compare", Path("runs/my run")), "--trainer.num_sanity_val_steps", 0)
    assert outcome.code == 0, outcome.err
    table = Path("runs/my run/results.md").read_text()
    assert "Last validation, after 20 training steps:" in outcome.out
    assert all(line in outcome.out for line in table.splitlines())
    assert all(f"| {name} " in table for name in ("spade", "relu", "jumprelu", "topk"))
    page = Path("runs/my run/report.html").read_text()
    assert "Measured on" in page
    assert "</html>" in page
    (command,) = re.findall(r"^Next: +sae-lightning (test .*)$", outcome.out, re.MULTILINE)
    import shlex

    outcome = run_cli(*shlex.split(command))
    assert outcome.code == 0, outcome.err
    assert "test" in load_results("runs/my run/results.json")
    assert "Test:" in Path("runs/my run/results.md").read_text()
    outcome = run_cli(*["predict", *shlex.split(command)[1:]])
    assert outcome.out.count("Codes:       runs/my run/members/") == 4


def test_nothing_is_told_of_a_validation_that_was_none(tmp_path):
    """The few batches of the sanity check say nothing."""
    outcome = run_cli(
        "fit", *TINY, "--trainer.num_sanity_val_steps", 2, "--trainer.limit_val_batches", 0, "--run_dir", tmp_path
    )
    assert outcome.code == 0, outcome.err
    assert "Last validation" not in outcome.out
    outcome = run_cli("fit", *TINY, "--trainer.num_sanity_val_steps", 2, "--trainer.check_val_every_n_epoch", 9)
    assert "Last validation" not in outcome.out
    assert "Next:" in outcome.out


@pytest.mark.slow
def test_a_log_holds_lines_and_no_bars_adverts_or_empty_columns(tmp_path):
    args = [
        "fit",
        "-c",
        "separability/compare",
        "-c",
        "debug/fast",
        "--run_dir",
        tmp_path / "run",
        "--progress.seconds",
        0,
    ]
    args += ["--trainer.log_every_n_steps", 50]
    process = start(*args)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err[-3000:]
    for unwanted in (
        "FLOPs",
        "recovery_metrics",
        "_means",
        "💡",
        "litlogger",
        "\r",
        "it/s",
        "\x1b[",
        "logging interval",
    ):
        assert unwanted not in out + err, unwanted
    lines = re.findall(r"^epoch 0, step (\d+)/20 after 0:00:\d\d: .*samples/s [\d,]+$", out, re.MULTILINE)
    assert [int(step) for step in lines] == list(range(1, 21))
    assert re.search(r"^spade +SpaDE: 128 latents, d_in 2, \d+ parameters$", out, re.MULTILINE)
    quiet = run_cli(*args, "--overwrite", "true", "--progress.refresh_rate", 0)
    assert "samples/s" not in quiet.out


def test_a_wrong_interval_of_lines_is_refused(tmp_path):
    refused(
        run_cli("fit", *TINY, "--progress.seconds", -1, "--run_dir", tmp_path), "seconds must be at least 0, but is -1"
    )
