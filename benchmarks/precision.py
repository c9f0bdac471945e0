"""What half precision changes: the shipped comparisons trained in several precisions, against what chance changes.

`python -m benchmarks.precision --output docs` writes docs/precision.json and the tables in docs/precision.md.
Runs are kept in `--runs` and not repeated, so that an interrupted measurement goes on.

Each seed trains every experiment as it is (32-true), and in half precision. How much differs without any change of
precision is seen where one initial weight of each SAE is moved by 1e-6 (nudged), and where each is multiplied by
1 + 2^-9 times a normal number, about as much as bfloat16 rounds (shaken).
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

from benchmarks.precision_report import BARS, MARK, MEMBERS, write_tables
from sae_lightning.modules import BaseSAE, SpaDE, TopKSAE

_ROOT = Path(__file__).parents[1]
_CONFIGS = Path("configs")
_GPT = Path("gpt", "checkpoints", "last.ckpt")
_DECAYED = "formal_language_decayed"  # the others' learning rates fall already
EXPERIMENTS = {"separability": 750, "heterogeneity": 500, "formal_language": 1000, _DECAYED: 1000}  # steps
WAYS = ("32-true", "nudged", "shaken", "bf16-mixed", "bf16-true")
CONTROLS = ("nudged", "shaken")
_NUDGE = 1e-6
_SHAKE = 2.0**-9  # bfloat16 rounds by at most twice this


class Trial(pl.Callback):
    """Moves weights of each SAE before training, and times steps in both precisions after it.

    Args:
        nudge: What is added to the first weight of each encoder.
        shake: Standard deviation of what every weight of both matrices is multiplied by, around one.
        pairs: How many steps are timed in either precision, in turn; 0 times none.
    """

    def __init__(self, nudge: float = 0.0, shake: float = 0.0, pairs: int = 0) -> None:
        self.nudge = nudge
        self.shake = shake
        self.pairs = pairs
        self._batch: torch.Tensor | None = None

    @torch.no_grad()
    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Move the weights, which data has initialized by now."""
        for sae in pl_module.saes().values():
            sae.sae.encoder.weight[0, 0] += self.nudge
            generator = torch.Generator().manual_seed(0)
            for weight in (sae.sae.encoder.weight, sae.sae.decoder.weight) if self.shake else ():
                weight.mul_(1 + self.shake * torch.randn(weight.shape, generator=generator))

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep a batch to time steps on."""
        self._batch = batch.activations

    def on_fit_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Time training steps of every SAE, and write the ratios bf16-mixed : 32-true."""
        if not self.pairs:
            return
        assert self._batch is not None
        ratios = {name: time_steps(sae, self._batch, self.pairs) for name, sae in pl_module.saes().items()}
        Path(trainer.default_root_dir, "timing.json").write_text(json.dumps(ratios))


def time_steps(sae: BaseSAE, x: torch.Tensor, pairs: int) -> dict[str, float]:
    """Median seconds of a training step in either precision, in turn, and their ratio."""
    optimizer = sae.make_optimizer()[0]
    times: list[list[float]] = [[], []]
    for _ in range(pairs + 2):  # the first two are warm-up
        for way, spent in enumerate(times):
            start = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=bool(way)):
                loss = sae.learn(x).terms["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            spent.append(time.perf_counter() - start)
    exact, half = (statistics.median(spent[2:]) for spent in times)
    return {"32-true": exact, "bf16-mixed": half, "ratio": half / exact}


def time_large(pairs: int = 10) -> dict[str, Any]:
    """The same for SAEs of a language model's sizes, where products weigh more: d_in 768, d_sae 12288, batch 1024."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(1024, 768)
    saes: dict[str, BaseSAE] = {"spade": SpaDE(768, 12288, l0_init=32), "topk": TopKSAE(768, 12288, k=32)}
    for sae in saes.values():
        sae.initialize(torch.randn(16384, 768))
    return {name: time_steps(sae, x, pairs) for name, sae in saes.items()}


def shortened(experiment: str, runs: Path) -> Path:
    """The shipped config with fewer steps, and schedules that end with them."""
    steps = EXPERIMENTS[experiment]
    config = yaml.safe_load((_ROOT / _CONFIGS / experiment.removesuffix("_decayed") / "compare.yaml").read_text())
    config["trainer"] |= {"max_steps": steps, "val_check_interval": steps}
    for member in config["model"]["init_args"]["members"].values():
        if experiment == _DECAYED:
            cosine = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"eta_min": 1e-5}}
            member["init_args"]["lr_scheduler"] = cosine
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
    args += ["--trainer.precision", "32-true" if way in CONTROLS else way, "--figures.on_validation", "false"]
    args += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    args += ["--trainer.callbacks+", "benchmarks.precision.Trial"]
    args += ["--trainer.callbacks.nudge", str(_NUDGE if way == "nudged" else 0.0)]
    args += ["--trainer.callbacks.shake", str(_SHAKE if way == "shaken" else 0.0)]
    args += ["--trainer.callbacks.pairs", str(40 if way == "32-true" and seed == 0 else 0)]
    if experiment.startswith("formal_language"):
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
    if experiment.startswith("formal_language") and not (runs / _GPT).exists():
        quiet = ["--trainer.enable_progress_bar", "false", "--num_threads", "1", "--run_dir", str(runs / "gpt")]
        run(["fit", "-c", str(_CONFIGS / "formal_language" / "gpt.yaml"), *quiet], runs / "gpt.log")
    place = folder(experiment, way, seed, runs)
    if not (place / "results.json").exists():
        start = time.perf_counter()
        run(arguments(experiment, way, seed, runs), place.with_suffix(".log"))
        print(f"{time.perf_counter() - start:5.0f} s  {place.name}", flush=True)


def collect(runs: Path) -> dict[str, Any]:
    """What is in the runs' folders: held-out metrics by experiment, way, seed and SAE, and the times of steps."""
    found: dict[str, Any] = {}
    for experiment, steps in EXPERIMENTS.items():
        metrics: dict[str, Any] = {}
        for way in WAYS:
            for place in sorted(runs.glob(f"{experiment}-{way}-*/results.json")):
                fit = json.loads(place.read_text())["fit"]
                seed = place.parent.name.rpartition("-")[2]
                for name in MEMBERS:
                    values = {key: fit["metrics"][f"{name}/val/{key}"] for key in BARS}
                    metrics.setdefault(name, {}).setdefault(way, {})[seed] = values
        timing = runs / f"{experiment}-32-true-0" / "timing.json"
        times = json.loads(timing.read_text()) if timing.exists() else {}
        found[experiment] = {"steps": steps, "metrics": metrics, "seconds_per_step": times}
    large = runs / "large.json"
    if not large.exists():
        large.write_text(json.dumps(time_large()))
    found["768 x 12288"] = {"steps": 0, "metrics": {}, "seconds_per_step": json.loads(large.read_text())}
    return {"torch": torch.__version__, "experiments": found}


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
                train(experiment, way, seed, runs)
    results = collect(runs)
    tables = write_tables(results)
    if args.output is None:
        print(tables)
        return
    (args.output / "precision.json").write_text(json.dumps(results, indent=1) + "\n")
    page = args.output / "precision.md"
    prose = page.read_text().partition(MARK)[0] if page.exists() else ""
    page.write_text(f"{prose}{MARK}\n\n{tables}")


if __name__ == "__main__":
    main()
