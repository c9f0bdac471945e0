"""The results of a run in one file."""

import math
import os
import platform
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities import rank_zero_warn

from sae_lightning.callbacks.base import RunCallback, find
from sae_lightning.callbacks.divergence import Divergence
from sae_lightning.modules.module import SAEModule
from sae_lightning.modules.run import RunModule
from sae_lightning.run.files import replacing
from sae_lightning.run.loggers import RunTensorBoardLogger, run_folder
from sae_lightning.run.seal import seal_json, unseal_json
from sae_lightning.version import __version__

RESULTS = "results.json"
"""Name of the file in the folder of a run."""


class ResultsWriter(RunCallback):
    """Writes `results.json` to the run's folder, and hyperparameters with final metrics to TensorBoard.

    The file holds one entry per command (`fit`, `validate`, `test`): the last value of every `val/` or `test/` key,
    seed, versions, wall time, samples seen, and what was trained. Values that are not finite are null. `fit` has
    what `Divergence` found under `diverged`. The file carries a checksum, which `load_results` compares.

    Args:
        config: What the command line was given, stored as it is.
    """

    uses = (Divergence,)

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        self.config = config
        self._start = 0.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the clock."""
        super().setup(trainer, pl_module, stage)
        self._start = time.perf_counter()

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the results of training."""
        self._write(trainer, pl_module, "fit", "val")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the results of the command `validate` (not of validation during training)."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "validate", "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the results of the test."""
        self._write(trainer, pl_module, "test", "test")

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, command: str, stage: str) -> None:
        folder = run_folder(trainer)
        if not trainer.is_global_zero or folder is None:
            return
        assert isinstance(pl_module, RunModule)
        metrics = {
            key: float(value)
            for key, value in sorted(trainer.callback_metrics.items())
            if f"/{stage}/" in f"/{key}" and not key.endswith("_step")
        }
        path = folder / RESULTS
        results = _earlier(path)
        results["model"] = pl_module.describe()
        results[command] = {
            "metrics": {key: value if math.isfinite(value) else None for key, value in metrics.items()},
            "seed": int(os.environ["PL_GLOBAL_SEED"]) if "PL_GLOBAL_SEED" in os.environ else None,
            "wall_time_seconds": round(time.perf_counter() - self._start, 3),
            "steps": trainer.global_step,
            "samples_seen": pl_module.samples_seen,
            "processes": trainer.world_size,
            "precision": str(trainer.precision),
            "device": str(pl_module.device),
            "versions": _versions(),
            "config": self.config,
        }
        if isinstance(pl_module, SAEModule):
            results[command]["backend"] = pl_module.backends()
        divergence = find(trainer, Divergence)
        if command == "fit" and divergence is not None:
            found = divergence.found.items()
            results[command]["diverged"] = [{"sae": name or None, **diverged._asdict()} for name, diverged in found]
        with replacing(path) as file:
            file.write(seal_json(_finite(results)))
        for logger in trainer.loggers:
            if isinstance(logger, RunTensorBoardLogger):
                modules = pl_module.saes() if isinstance(pl_module, SAEModule) else {"": pl_module}
                for name, sae in modules.items():
                    logger.log_outcome(name, {"class": sae.made_as.__name__, **sae.hparams}, metrics)


def load_results(path: str | Path) -> dict[str, Any]:
    """Read a `results.json` and compare its checksum.

    Args:
        path: The file, or the folder of its run.

    Returns:
        What was trained under `model`, and an entry for each command that was run.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file of results, or one bit of it is not what was written.
    """
    path = Path(path)
    path = path / RESULTS if path.is_dir() and path.name != RESULTS else path
    try:
        return unseal_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(f"results {str(path)!r} cannot be read: {error}") from error


def _finite(value: Any) -> Any:
    """Plain values, in which words take the place of infinite numbers and NaN, which JSON does not know."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _earlier(path: Path) -> dict[str, Any]:
    """What earlier commands wrote; a damaged file is kept under another name, so that nothing is lost."""
    try:
        return load_results(path)
    except FileNotFoundError:
        return {}
    except ValueError as error:
        kept = path.with_name("results.damaged.json")
        path.replace(kept)
        rank_zero_warn(f"{error}; it is kept as {str(kept)!r}, and {path.name} begins again")
        return {}


def _versions() -> dict[str, str]:
    import lightning
    import torchmetrics

    return {
        "sae_lightning": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "torchmetrics": torchmetrics.__version__,
    }
