"""What half precision changes: the shipped comparisons trained in several precisions, against what chance changes.

`python -m tests.benchmarks.precision --output docs` writes docs/precision.json and the tables in docs/precision.md. Runs
are kept in `--runs` and not repeated, so that an interrupted measurement goes on; `--only` takes a part.

Each seed trains every experiment as it is (32-true), again with one weight of each SAE moved by 1e-6 (so much differs
without any change of precision), and in half precision.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import yaml

_ROOT = Path(__file__).parents[2]
_CONFIGS = Path("configs")
_GPT = Path("gpt", "checkpoints", "last.ckpt")
EXPERIMENTS = {"separability": 750, "heterogeneity": 500, "formal_language": 1000}  # steps: half, half and two fifths
WAYS = ("32-true", "nudged", "bf16-mixed", "bf16-true")
MEMBERS = ("spade", "relu", "jumprelu", "topk")
METRICS = ("f1", "monosemanticity", "l0", "nmse")
BARS = {"f1": 0.02, "monosemanticity": 0.02, "l0": 0.05, "nmse": 0.10}
RELATIVE = ("l0", "nmse")
_NUDGE = 1e-6


class Trial(pl.Callback):
    """Moves one weight of each SAE before training, and times steps in both precisions after it.

    Args:
        nudge: What is added to the first weight of each encoder.
        pairs: How many steps are timed in either precision, in turn; 0 times none.
    """

    def __init__(self, nudge: float = 0.0, pairs: int = 0) -> None:
        self.nudge = nudge
        self.pairs = pairs
        self._batch: torch.Tensor | None = None

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Move the weights, which data has initialised by now."""
        for sae in pl_module.saes().values():
            sae.sae.encoder.weight[0, 0] += self.nudge

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep a batch to time steps on."""
        self._batch = batch.activations

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Time training steps of every SAE, and write the ratios bf16-mixed : 32-true."""
        if not self.pairs:
            return
        assert self._batch is not None
        ratios = {}
        for name, sae in pl_module.saes().items():
            optimizer = sae.make_optimizer()[0]
            times: list[list[float]] = [[], []]
            for _ in range(self.pairs):
                for way, spent in enumerate(times):
                    start = time.perf_counter()
                    with torch.autocast("cpu", torch.bfloat16, enabled=bool(way)):
                        loss = sae.learn(self._batch).terms["loss"]
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
                    spent.append(time.perf_counter() - start)
            exact, half = (statistics.median(spent[2:]) for spent in times)
            ratios[name] = {"32-true": exact, "bf16-mixed": half, "ratio": half / exact}
        Path(trainer.default_root_dir, "timing.json").write_text(json.dumps(ratios))


def shortened(experiment: str, runs: Path) -> Path:
    """The shipped config with fewer steps, and schedules that end with them."""
    steps = EXPERIMENTS[experiment]
    config = yaml.safe_load((_ROOT / _CONFIGS / experiment / "compare.yaml").read_text())
    config["trainer"] |= {"max_steps": steps, "val_check_interval": steps}
    for member in config["model"]["init_args"]["members"].values():
        if "lr_scheduler" in member["init_args"]:
            member["init_args"]["lr_scheduler"]["init_args"]["T_max"] = steps
    path = runs / f"{experiment}.yaml"
    runs.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(config))
    return path


def arguments(experiment: str, way: str, seed: int, runs: Path) -> list[str]:
    """The command line of one run."""
    args = ["fit", "-c", str(shortened(experiment, runs)), "--seed_everything", str(seed)]
    args += ["--run_dir", str(folder(experiment, way, seed, runs)), "--overwrite", "true", "--num_threads", "1"]
    args += ["--model.processes", "1", "--recovery.top_n", "5", "--trainer.accelerator", "cpu"]
    args += ["--trainer.precision", "32-true" if way == "nudged" else way, "--figures.on_validation", "false"]
    args += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    args += ["--trainer.callbacks+", "tests.benchmarks.precision.Trial"]
    args += ["--trainer.callbacks.nudge", str(_NUDGE if way == "nudged" else 0.0)]
    args += ["--trainer.callbacks.pairs", str(40 if way == "32-true" and seed == 0 else 0)]
    if experiment == "formal_language":
        args += ["--data.checkpoint", str(runs / _GPT)]
    return args


def folder(experiment: str, way: str, seed: int, runs: Path) -> Path:
    """Where a run lies."""
    return runs / f"{experiment}-{way}-{seed}"


def run(args: Iterable[str], log: Path) -> None:
    """Run the command line in a process of its own.

    Raises:
        RuntimeError: If it fails.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as file:
        command = [sys.executable, "-m", "sae_lightning", *args]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, cwd=_ROOT, env=environment, stdout=file, stderr=file, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed with exit status {done.returncode}: see {log}")


def train(experiment: str, way: str, seed: int, runs: Path) -> None:
    """Train what has not been trained yet."""
    if experiment == "formal_language" and not (runs / _GPT).exists():
        quiet = ["--trainer.enable_progress_bar", "false", "--num_threads", "1", "--run_dir", str(runs / "gpt")]
        run(["fit", "-c", str(_CONFIGS / experiment / "gpt.yaml"), *quiet], runs / "gpt.log")
    place = folder(experiment, way, seed, runs)
    if not (place / "results.json").exists():
        start = time.perf_counter()
        run(arguments(experiment, way, seed, runs), place.with_suffix(".log"))
        print(f"{time.perf_counter() - start:5.0f} s  {place.name}", flush=True)


def main(given: list[str] | None = None) -> None:
    """Train, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/precision"), help="where runs are kept")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--experiments", nargs="*", choices=EXPERIMENTS, default=EXPERIMENTS)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    parser.add_argument("--output", type=Path, help="folder of precision.json and precision.md")
    args = parser.parse_args(given)
    runs = args.runs.resolve()
    for seed in args.seeds:
        for experiment in args.experiments:
            for way in args.ways:
                if (experiment, way) == ("separability", "nudged"):
                    continue  # mixed precision changes nothing there: there is nothing to compare with chance
                train(experiment, way, seed, runs)


if __name__ == "__main__":
    main()
