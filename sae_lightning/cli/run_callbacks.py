"""Callbacks of a run of the command line that take no arguments of their own."""

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from sae_lightning.run.files import replacing


class ConfigWriter(Callback):
    """Writes the run's configuration into its folder.

    Args:
        config: The configuration, in plain values.
        path: The file.
    """

    def __init__(self, config: dict[str, Any], path: Path) -> None:
        self._config = config
        self._path = path

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file on rank zero."""
        import yaml

        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path, "w", encoding="utf-8") as file:
                yaml.safe_dump(self._config, file, sort_keys=False)


class Beginning(Callback):
    """Calls a function once, after the first training batch.

    Args:
        then: What is called then, once.
    """

    def __init__(self, then: Callable[[], None]) -> None:
        self.begun = False
        self._then = then

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Call it after the first batch."""
        if not self.begun:
            self.begun = True
            self._then()


class NextCommand(Callback):
    """Prints after training the command that tests it.

    Args:
        run_dir: The run's folder.
    """

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the literal command, if there is a checkpoint to test."""
        checkpoint = trainer.checkpoint_callback
        last = getattr(checkpoint, "last_model_path", "") or getattr(checkpoint, "best_model_path", "")
        if trainer.is_global_zero and last:
            config = shlex.quote(str(self._run_dir / "config.yaml"))
            print(f"Next:        sae-lightning test -c {config} --ckpt_path {shlex.quote(str(last))}", flush=True)
