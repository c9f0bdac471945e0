"""Loggers of a run: TensorBoard with one run per SAE, and a CSV file that later commands append to."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from sae_lightning.run.files import replacing, temporary_of
from sae_lightning.run.folder import RunFolder
from sae_lightning.run.lightning_internals import OpenedCSVWriter

MEMBERS = "members"
"""Subfolder of a run's folder with one folder for each SAE of a comparison."""

_STAGES = ("train", "val", "test")


def split_member(key: str) -> tuple[str, str]:
    """Split the key of a metric into the name of its SAE, empty if it has none, and the rest.

    Example:
        >>> from sae_lightning.run.loggers import split_member
        >>> split_member("spade/val/f1"), split_member("val/f1")
        (('spade', 'val/f1'), ('', 'val/f1'))
    """
    name, _, rest = key.partition("/")
    return (name, rest) if name not in _STAGES and rest.startswith(_STAGES) else ("", key)


def run_folder(trainer: pl.Trainer) -> Path | None:
    """Return the run's folder.

    On the command line this is `run_dir`, otherwise the folder of the trainer's first logger, or None without loggers.
    Unlike `trainer.log_dir`, it does not communicate, so a single rank may call it.
    """
    callbacks = trainer.callbacks if trainer.loggers else []  # type: ignore[attr-defined]
    for callback in callbacks:
        if isinstance(callback, RunFolder):
            return callback.path
    for logger in trainer.loggers:
        folder = getattr(logger, "log_dir", None) or logger.save_dir
        if folder is not None:
            return Path(folder)
    return None


class RunTensorBoardLogger(TensorBoardLogger):
    """TensorBoard logger that writes each SAE of a comparison as a separate run, so that their curves share one chart.

    Args:
        run_dir: The run's folder; events of an SAE are written to `members/<name>` in it.
        first_step: First step of a resumed run; values that an earlier process logged from this step on are purged.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sae_lightning.run.loggers import RunTensorBoardLogger
        >>> with TemporaryDirectory() as folder:
        ...     logger = RunTensorBoardLogger(folder)
        ...     logger.log_metrics({"spade/val/f1": 0.9}, step=1)
        ...     logger.finalize("success")
        ...     Path(folder, "members", "spade").is_dir()
        True
    """

    def __init__(self, run_dir: str, first_step: int | None = None) -> None:
        super().__init__(save_dir=run_dir, name="", version="", default_hp_metric=False, purge_step=first_step)
        self._first_step = first_step
        self._members: dict[str, Any] = {}

    def _writer(self, name: str) -> Any:
        if not name:
            return self.experiment
        if name not in self._members:
            from torch.utils.tensorboard import SummaryWriter

            self._members[name] = SummaryWriter(str(Path(self.log_dir, MEMBERS, name)), purge_step=self._first_step)
        return self._members[name]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars, each to the run of the SAE in its key."""
        for key, value in metrics.items():
            name, tag = split_member(key)
            self._writer(name).add_scalar(tag, value, step)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the HPARAMS tab needs the final metrics, which `log_outcome` writes."""

    @rank_zero_only
    def log_outcome(self, name: str, hparams: Mapping[str, Any], metrics: Mapping[str, float]) -> None:
        """Write the hyperparameters and final metrics of one SAE, a row in TensorBoard's HPARAMS tab.

        Args:
            name: Name of the SAE, empty for a single one.
            hparams: Hyperparameters of the SAE.
            metrics: Logged metrics of all SAEs.
        """
        from torch.utils.tensorboard.summary import hparams as summarize

        split = {split_member(key): value for key, value in metrics.items()}
        own = {tag: value for (member, tag), value in split.items() if member == name}
        plain = {k: v if isinstance(v, (bool, int, float, str)) else str(v) for k, v in hparams.items()}
        outcome = {f"hparams/{tag}": value for tag, value in own.items()}
        if not outcome:
            return
        writer = self._writer(name)
        # TensorBoard keeps only the first summary of a run, so it must also name the metrics of a later test
        names = outcome.keys() | {tag.replace("hparams/val/", "hparams/test/", 1) for tag in outcome}
        for summary in summarize(plain, dict.fromkeys(sorted(names), 0.0)):  # type: ignore[no-untyped-call]
            writer.file_writer.add_summary(summary)
        for tag, value in outcome.items():
            writer.add_scalar(tag, value, 0)
        writer.flush()

    @rank_zero_only
    def save(self) -> None:
        """Flush all writers; unlike the parent class, write no file of hyperparameters (they are in config.yaml)."""
        for writer in (self.experiment, *self._members.values()):
            writer.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Close all writers."""
        super().finalize(status)
        for writer in self._members.values():
            writer.close()
        self._members = {}
        self._first_step = None  # later writers must not purge the values of this process


class _AppendingWriter(OpenedCSVWriter):
    """Writer that appends to an existing file instead of deleting it.

    Args:
        log_dir: Folder of the file.
        first_step: Rows of training and validation from this step on are dropped; None keeps all.
    """

    def __init__(self, log_dir: str, first_step: int | None) -> None:
        self._first_step = first_step
        super().__init__(log_dir)

    def open_file(self) -> None:
        """Take over the rows of an existing file."""
        path = Path(self.metrics_file_path)
        temporary_of(path).unlink(missing_ok=True)
        if not path.is_file():
            return
        with path.open(newline="") as file:
            text = file.read()
        whole = text[: text.rfind("\n") + 1]  # drops an incomplete row of a killed process
        rows = csv.DictReader(io.StringIO(whole))
        self.metrics_keys = list(rows.fieldnames or [])
        found = list(rows)
        kept = [row for row in found if self._is_kept(row)]
        if whole != text or len(kept) < len(found):
            self._rewrite(kept)

    def _is_kept(self, row: Mapping[str, str]) -> bool:
        if self._first_step is None or int(row["step"]) < self._first_step:
            return True
        # test results are not part of the training curve, so they are kept
        return any(value and split_member(key)[1].startswith("test/") for key, value in row.items())

    def rewrite_file(self) -> None:
        """Write all rows again, under the present keys."""
        with Path(self.metrics_file_path).open(newline="") as file:
            self._rewrite(list(csv.DictReader(file)))

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with replacing(Path(self.metrics_file_path), "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=self.metrics_keys)
            if self.metrics_keys:
                writer.writeheader()
            writer.writerows(rows)


class RunCSVLogger(CSVLogger):
    """CSV logger that writes `metrics.csv` in the run's folder; a resumed run or a later test appends rows.

    Args:
        run_dir: The run's folder.
        first_step: First step of a resumed run; rows that an earlier process logged from this step on are dropped.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sae_lightning.run.loggers import RunCSVLogger
        >>> with TemporaryDirectory() as folder:
        ...     logger = RunCSVLogger(folder)
        ...     logger.log_metrics({"val/f1": 0.5}, step=3)
        ...     logger.save()
        ...     print(Path(folder, "metrics.csv").read_text())
        step,val/f1
        3,0.5
        <BLANKLINE>
    """

    def __init__(self, run_dir: str, first_step: int | None = None) -> None:
        super().__init__(save_dir=run_dir, name="", version="")
        self._first_step = first_step

    @property
    def experiment(self) -> Any:
        """The writer of the file, on rank zero."""
        if self._experiment is None and getattr(rank_zero_only, "rank", 0) == 0:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _AppendingWriter(self.log_dir, self._first_step)
        return super().experiment

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: hyperparameters are in the run's config.yaml and results.json."""
