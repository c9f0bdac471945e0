"""The table of what each SAE finds and hides."""

import lightning.pytorch as pl

from sae_lightning.callbacks.base import RunCallback, find, found
from sae_lightning.callbacks.recovery import ConceptRecovery
from sae_lightning.callbacks.recovery_metrics import Recovery, columns
from sae_lightning.modules.module import SAEModule
from sae_lightning.run.files import replacing
from sae_lightning.run.loggers import run_folder

FOUND_ABOVE = 0.9
"""Best F1 from which a concept counts as found by default."""


def recovery_table(results: dict[str, Recovery], concept_names: list[str], found_above: float, title: str) -> list[str]:
    """Lines of a Markdown table: a row per SAE, its metrics, then the F1 of its best latent for each concept.

    Args:
        results: Measurements by name of the SAE.
        concept_names: Names of the concepts; empty for unlabeled data.
        found_above: Best F1 from which a concept counts as found; others are set in parentheses.
        title: Name of a single SAE, which has none of its own.

    Returns:
        The table's lines, padded so that they read well as they are.
    """
    shown = [(scalar.key, scalar.column) for scalar in columns() if scalar.column is not None]
    header = ["SAE", *(column.label for _, column in shown), *concept_names]
    rows = []
    for name, result in results.items():
        scalars = {key: float(value) for key, value in result.scalars([]).items()}
        row = [name or title, *(column.text(scalars.get(key)) for key, column in shown)]
        if result.f1 is not None:
            best = result.f1.best.tolist()
            row += [f"{value:.3f}" if value >= found_above else f"({value:.3f})" for value in best]
        rows.append(row)
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in (header, *rows)
    ]
    lines.insert(1, "|" + "|".join("-" * (w + 2) for w in widths) + "|")
    return lines


class RecoveryTable(RunCallback):
    """Writes which concepts each SAE finds and hides, after each validation and test, and prints it at the end.

    The table goes to `results.md` in the run's folder; a concept counts as found where the best latent's F1 reaches
    `found_above`. After training it is that of the last validation.

    Args:
        found_above: Best F1 from which a concept counts as found, between 0 and 1.

    Raises:
        ValueError: If `found_above` lies outside 0 and 1.
    """

    key = "table"
    serves = SAEModule
    needs = (ConceptRecovery,)

    def __init__(self, found_above: float = FOUND_ABOVE) -> None:
        if not 0 <= found_above <= 1:
            raise ValueError(f"found_above must lie between 0 and 1, but is {found_above}")
        self.found_above = found_above
        self._last: list[str] = []  # lines of the last validation in training

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write; print after the command `validate`, not in training."""
        if trainer.sanity_checking:
            return
        if trainer.state.fn == "validate":
            self._print(trainer, self._write(trainer, pl_module, "Validation:"), "val")
        else:  # written at once: a run that is killed later and resumed at its end measures nothing
            heading = f"Last validation, after {trainer.global_step:,} training steps:"
            self._last = self._write(trainer, pl_module, heading)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the last validation."""
        self._print(trainer, self._last, "val")

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write and print the test."""
        self._print(trainer, self._write(trainer, pl_module, "Test:"), "test")

    def _write(self, trainer: pl.Trainer, pl_module: pl.LightningModule, heading: str) -> list[str]:
        """Write `results.md` on rank zero, and return its lines; none where nothing was measured."""
        recovery = found(trainer, ConceptRecovery)
        if not recovery.results or not trainer.is_global_zero:
            return []
        assert isinstance(pl_module, SAEModule)
        names = recovery.concept_names
        lines = recovery_table(recovery.results, names, self.found_above, type(pl_module).__name__)
        if names:
            note = "Columns of concepts: F1 of the best latent, in parentheses where the concept stays hidden"
            lines += ["", f"{note} (below {self.found_above:g})."]
        lines = [heading, "", *lines]
        folder = run_folder(trainer)
        if folder is not None:
            with replacing(folder / "results.md", "w", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        return lines

    @staticmethod
    def _print(trainer: pl.Trainer, lines: list[str], stage: str) -> None:
        if not lines:
            return
        print("\n" + "\n".join(lines))
        folder = run_folder(trainer)
        if folder is not None:
            print(f"\nTable:       {folder / 'results.md'} (all numbers: {folder / 'results.json'})")
            print(f"Figures:     {folder / 'figures' / stage}")
            print(f"TensorBoard: tensorboard --logdir {folder}\n")


def found_above(trainer: pl.Trainer) -> float:
    """The best F1 from which a concept counts as found, as the trainer's table says."""
    table = find(trainer, RecoveryTable)
    return FOUND_ABOVE if table is None else table.found_above
