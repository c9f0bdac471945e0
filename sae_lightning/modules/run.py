"""What every module that the command line trains has in common."""

import signal
from typing import Any

import lightning.pytorch as pl
from torch import Tensor

from sae_lightning.nn.parts import Recorded

CHECKPOINT_KEY = "sae_lightning"
SIGTERM_STATUS = 128 + signal.SIGTERM
"""Exit status of a run that SIGTERM ended, 143, as shells and schedulers know it."""


class NonfiniteError(ValueError):
    """A batch or a loss that holds NaN or infinities.

    Args:
        message: What is not finite, and where.
        batch: The batch.
        facts: What else is known of it, in words.
    """

    def __init__(self, message: str, batch: Any = None, facts: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.batch = batch
        self.facts = dict(facts or {})


class RunModule(Recorded, pl.LightningModule):
    """Counts what it has seen, and stores in checkpoints how it is built.

    Attributes:
        samples_seen: Training samples of all processes so far.
        losses: Losses of the training step at hand by SAE, where there are several to tell apart.
    """

    def __init__(self) -> None:
        super().__init__()
        self.samples_seen = 0
        self.losses: dict[str, Tensor] = {}

    def is_logging_step(self) -> bool:
        """Whether the current training step is one at which the trainer logs."""
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        return bool(every) and (self.global_step + 1) % every == 0

    def relative_errors(self, batch: Any) -> dict[str, Tensor]:
        """Errors of the training step at hand by SAE, where 1 is what a model has that learns nothing.

        Args:
            batch: The batch of the step.

        Returns:
            Scalars; none where a model knows no such error.
        """
        return {}

    def on_sigterm(self) -> None:
        """Bound what the step at hand waits for: SIGTERM has come, and this is called within its handler."""

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store how to build this module, and how many samples it has seen."""
        checkpoint[CHECKPOINT_KEY] = {**self.describe(), "samples_seen": self.samples_seen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another class, and restore the count of samples.

        Raises:
            ValueError: If the checkpoint was made by another class.
        """
        saved = checkpoint.get(CHECKPOINT_KEY, {})
        own = self.describe()["class_path"]
        if saved.get("class_path", own) != own:
            raise ValueError(f"the checkpoint is of class {saved['class_path']}, but the model is of class {own}")
        self.samples_seen = int(saved.get("samples_seen", 0))
