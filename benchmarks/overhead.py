"""What logging, metrics, checkpoints and Lightning's loop add to a bare loop over the same training steps.

    python -m benchmarks.overhead --output docs

A run of `sae-lightning fit` with all default callbacks and loggers alternates, step by step, with the bare loop
(forward, backward, clipping, optimizer) of a twin of its SAE, so that both see the same machine: whenever the run asks
for a batch, the twin makes a step. What lies between two such moments is a step of the run, with all that happens in
it. Writes overhead.json.
"""

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

from benchmarks.contender import LEARNING_RATE
from benchmarks.measure import quartiles
from benchmarks.ours import ARCHITECTURES, Ours, make_sae
from benchmarks.problem import Shape, draw_activations, make_problem
from benchmarks.report import describe_machine
from sae_lightning.callbacks import RunCheckpoint
from sae_lightning.cli import main as sae_lightning
from sae_lightning.data import ActivationDataModule
from sae_lightning.data.datamodule import Split
from sae_lightning.data.loading import ActivationDataset, ActivationLoader
from sae_lightning.modules.module import SAEModule

LOG_EVERY = 50  # the trainer's default
SAVE_EVERY = 1000  # RunCheckpoint's default
VALIDATE_EVERY, N_VALIDATION = 2000, 8192  # about as configs/separability, on more samples
N_CONCEPTS = 12
# while it is measured, everything happens more often
_LOG_EVERY, _EVENT_EVERY = 10, 50
_EVENTS = ("logged", "saved", "validated")
_REPORT = "overhead.json"


def clocks() -> tuple[float, float]:
    """Time on the wall, and processor time of this process, which knows no waiting for other processes."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """Both times that passed."""
    return end[0] - start[0], end[1] - start[1]


class PairedDataset(ActivationDataset):
    """Training data that know what to do before a batch is handed out."""

    alternating: "Alternating | None" = None


class PairedLoader(ActivationLoader):
    """Lets the twin make a step before each batch."""

    def __iter__(self) -> Iterator[Any]:
        """Yield the batches."""
        for batch in super().__iter__():
            if self.dataset.alternating is not None:
                self.dataset.alternating.between(batch.activations)
            yield batch


class PairedData(ActivationDataModule):
    """The benchmark's activations in memory, with random labels.

    Args:
        d_in: Size of an activation.
        n_train: Training samples.
        n_val: Samples of validation, and of test.
        n_concepts: Number of concepts.
        batch_size: Samples per step.
    """

    def __init__(self, d_in: int, n_train: int, n_val: int, n_concepts: int, batch_size: int) -> None:
        super().__init__(d_in, [f"C{i}" for i in range(n_concepts)], batch_size, 1024, seed=0)
        self.n_train = n_train
        self.n_val = n_val

    def make_split(self, split: Split) -> PairedDataset:
        """Draw a split."""
        n = self.n_train if split == "train" else self.n_val
        generator = torch.Generator().manual_seed(("train", "val", "test").index(split))
        labels = torch.randint(self.n_concepts, (n,), generator=generator)
        return PairedDataset(draw_activations(n, self.d_in, generator), labels)

    def train_dataloader(self) -> PairedLoader:
        """Batches between which the twin steps."""
        loader = super().train_dataloader()
        return PairedLoader.of(loader.dataset, loader.sequence, pin_memory=False)


class Alternating(pl.Callback):
    """Builds the twin, gives its weights to the SAE that is trained, and times both in turn.

    Args:
        architecture: One of `ARCHITECTURES`.
        shape: d_in, d_sae, batch and k.
        path: File for the times.
    """

    def __init__(self, architecture: str, shape: list[int], path: str) -> None:
        self.architecture = architecture
        self.shape = Shape(*shape)
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._since: tuple[float, float] | None = None
        self._bare = (0.0, 0.0)
        self._validated = self._logged = False
        self._saved = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Make two equal SAEs."""
        assert isinstance(pl_module, SAEModule)
        self._trainer = trainer
        problem = make_problem(self.shape, torch.device("cpu"))
        self.twin = Ours(self.architecture, problem)
        self.twin.calibrate(problem.batches[0])
        pl_module.sae.load_state_dict(self.twin.sae.sae.state_dict())
        for x in problem.batches * 2:  # warm-up, before which no optimizer has its states
            self.twin.step(x)
        trainer.datamodule.split("train").alternating = self

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Know what happens in this step."""
        self._logged = pl_module.is_logging_step()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Know that this step is followed by a validation."""
        self._validated = not trainer.sanity_checking

    def between(self, x: torch.Tensor) -> None:
        """Time the run's step since the last call, and a step of the twin."""
        now = clocks()
        checkpoint = next(c for c in self._trainer.callbacks if isinstance(c, RunCheckpoint))
        saved = checkpoint._last_global_step_saved
        if self._since is not None:
            events = {"logged": self._logged, "validated": self._validated, "saved": saved != self._saved}
            fit, bare = (dict(zip(("wall", "cpu"), d, strict=True)) for d in (since(self._since, now), self._bare))
            self.rows.append({"fit": fit, "bare": bare, **events})
        self._validated, self._saved = False, saved
        time.sleep(0.005)  # the loader's thread reads the next batch, which is no matter of either
        start = clocks()
        self.twin.step(x)
        self._since = clocks()
        self._bare = since(start, self._since)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the times."""
        Path(self.path).write_text(json.dumps(self.rows[3:]))  # the first steps make the optimizer's states


def measure(architecture: str, shape: Shape, steps: int) -> dict[str, Any]:
    """Train one SAE beside its twin; times of steps, and what events add, amortised over the default cadences."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        described = make_sae(architecture, shape).describe()
        del described["init_args"]["d_in"]  # linked to the data
        described["init_args"]["n_init_samples"] = 1024  # the twin's weights replace what comes of them
        described["init_args"]["optimizer"] = {
            "class_path": "torch.optim.Adam",
            "init_args": {"lr": LEARNING_RATE, "fused": True},
        }
        data = {"d_in": shape.d_in, "n_train": 16 * shape.batch, "n_val": N_VALIDATION, "n_concepts": N_CONCEPTS}
        alternating = {"architecture": architecture, "shape": list(shape), "path": str(folder / "rows.json")}
        config = {
            "run_dir": str(folder / "run"),
            "data": {"class_path": f"{__spec__.name}.PairedData", "init_args": {**data, "batch_size": shape.batch}},
            "model": described,
            "trainer": {
                "accelerator": "cpu",
                "max_epochs": -1,
                "max_steps": steps,
                "gradient_clip_val": 1.0,
                "log_every_n_steps": _LOG_EVERY,
                "val_check_interval": _EVENT_EVERY,
                "check_val_every_n_epoch": None,
                "callbacks": [{"class_path": f"{__spec__.name}.Alternating", "init_args": alternating}],
            },
            "checkpoint": {"every_n_steps": _EVENT_EVERY},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        with (
            (folder / "output").open("w") as output,
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            sae_lightning(["fit", "-c", str(folder / "config.yaml")])
        rows = json.loads((folder / "rows.json").read_text())
    return {
        "architecture": architecture,
        "shape": list(shape),
        **{clock: summarize(rows, clock) for clock in ("wall", "cpu")},
    }


def summarize(rows: list[dict[str, Any]], clock: str) -> dict[str, Any]:
    """Quartiles of plain steps, seconds that each event adds to a step, and their sum per step as a share.

    Args:
        rows: Pairs of `fit` and `bare` in seconds by clock, with what happened in the run's step.
        clock: `wall` or `cpu`.
    """
    pairs = [(row["fit"][clock], row["bare"][clock], {e for e in _EVENTS if row[e]}) for row in rows]
    plain = [(fit, bare) for fit, bare, events in pairs if not events]
    bare = statistics.median(bare for _, bare in plain)
    step = statistics.median(fit - bare for fit, bare in plain)
    added = dict.fromkeys(_EVENTS, 0.0)
    for event in _EVENTS:  # what is logged first, for a validation comes after a step that logs
        found = [
            fit - bare - step - sum(added[other] for other in events - {event})
            for fit, bare, events in pairs
            if event in events and (event != "logged" or events == {event})
        ]
        added[event] = statistics.median(found)
    every = {"logged": LOG_EVERY, "saved": SAVE_EVERY, "validated": VALIDATE_EVERY}
    shares = {"step": step / bare, **{event: added[event] / every[event] / bare for event in _EVENTS}}
    return {
        "pairs": len(plain),
        "bare": quartiles([bare for _, bare in plain]),
        "difference": quartiles([fit - bare for fit, bare in plain]),
        "ratio": quartiles([fit / bare for fit, bare in plain]),
        "added": added,
        "shares": shares,
        "overhead": sum(shares.values()),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure every architecture and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(ARCHITECTURES), choices=ARCHITECTURES, metavar="SAE")
    parser.add_argument("--shape", default="768,12288,1024,32", help="d_in,d_sae,batch,k")
    parser.add_argument("--steps", type=int, default=120, help="steps of each run")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; one is disturbed least by other processes")
    parser.add_argument("--output", type=Path, help=f"folder for {_REPORT}; printed if left out")
    args = parser.parse_args(arguments)
    if args.steps <= 2 * _EVENT_EVERY:
        parser.error(f"--steps must exceed {2 * _EVENT_EVERY}, but is {args.steps}")
    torch.set_num_threads(args.threads)
    shape = Shape(*map(int, args.shape.split(",")))
    rows = []
    for architecture in args.only:
        rows.append(measure(architecture, shape, args.steps))
        for clock in ("wall", "cpu"):
            found = rows[-1][clock]
            parts = ", ".join(f"{key} {value:.2%}" for key, value in found["shares"].items())
            print(f"{architecture}, {clock}: {found['overhead']:.2%} ({parts})", flush=True)
    cadence = {"log": LOG_EVERY, "save": SAVE_EVERY, "validate": VALIDATE_EVERY, "n_validation": N_VALIDATION}
    machine = describe_machine("cpu", torch.__version__, torch.get_num_threads())
    report = {"machine": machine, "cadence": cadence, "rows": rows}
    if args.output is None:
        print(json.dumps(report, indent=1))
    else:
        (args.output / _REPORT).write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    os.environ.setdefault("SAE_LIGHTNING_TRACEBACK", "1")
    sys.exit(main())
