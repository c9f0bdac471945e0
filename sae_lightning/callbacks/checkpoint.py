"""Checkpoints of a run, from which it resumes exactly."""

from pathlib import Path
from typing import Any
from weakref import proxy

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.callbacks.checkpoint_files import WHAT, AtomicCheckpointIO, checkpoints_by_step, step_of
from sae_lightning.callbacks.generators import generator_states, restore_generators
from sae_lightning.callbacks.stop import stops
from sae_lightning.data.loading import ActivationLoader, batches_done
from sae_lightning.run.files import WriteError, prepare_folder, replace_link
from sae_lightning.run.lightning_internals import (
    batches_read,
    begin_next_epoch,
    count_batches,
    resumes_within_epoch,
)

_KEY = "sae_lightning_run"


class RunCheckpoint(RunCallback, ModelCheckpoint):
    """Keeps the newest checkpoints of a run as `step=N.ckpt`, with `last.ckpt` pointing to the last of them.

    One is written every `every_n_steps` steps and one at the end of training; the oldest is removed when the newest
    is complete. A run that is killed at any moment and resumed from `last.ckpt` continues as if nothing had happened:
    a checkpoint holds the state at the end of a step, and appears once all that the step logs (its validation
    included) is on disk. The random generators of every rank are part of it. SIGTERM, which `GracefulStop` notices, has
    the last step saved.

    Args:
        dirpath: Folder of the checkpoints; the command line takes `checkpoints` in the run's folder.
        every_n_steps: Training steps between two checkpoints, at least 1.
        keep: How many are kept, at least 1; a resumed run falls back to an older one where the newest is damaged.

    Attributes:
        sound_until: The last step whose weights are known to be sound, as `Divergence` sets it: the newest checkpoint
            up to it is kept as well. None if no callback sets it.

    Raises:
        ValueError: If `every_n_steps` or `keep` is below 1.
        WriteError: At the start of training, if the folder cannot be written; during it, if a checkpoint cannot.
    """

    key = "checkpoint"

    def __init__(self, dirpath: str | None = None, every_n_steps: int = 1000, keep: int = 2) -> None:
        for name, value in {"every_n_steps": every_n_steps, "keep": keep}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        super().__init__(
            dirpath=dirpath,
            filename="{step}",
            save_top_k=1,
            save_last="link",
            every_n_train_steps=every_n_steps,
            enable_version_counter=False,
        )
        self._every = every_n_steps
        self._keep = keep
        self._saved = 0  # the last step that was saved
        self._taken: tuple[int, dict[str, Any]] | None = None  # a step, and the loops' state at its end
        self._restored: dict[str, Any] = {}
        self._generators: dict[str, Any] | None = None
        self.sound_until: int | None = None

    @property
    def state_key(self) -> str:
        """One key whatever the interval."""
        return "RunCheckpoint"

    def state_dict(self) -> dict[str, Any]:
        """Nothing: which checkpoints there are is seen in the folder, and `on_save_checkpoint` stores the rest."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Ignore the paths that older checkpoints hold."""

    # ------------------------------------------------------------------ start

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Before training, see whether the folder can be written, and choose how."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit" or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        strategy = trainer.strategy
        if type(strategy.checkpoint_io) is TorchCheckpointIO:  # Lightning's default: what the user chose stays
            strategy.checkpoint_io = AtomicCheckpointIO()
        if trainer.is_global_zero:
            prepare_folder(self._folder, WHAT)

    @property
    def _folder(self) -> Path:
        assert self.dirpath is not None  # settled in `setup`
        return Path(self.dirpath)

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep what is restored when training starts.

        Raises:
            ValueError: If ranks have read different checkpoints, for which a damaged file may be the reason.
        """
        step = checkpoint.get("global_step")
        first = trainer.strategy.broadcast(step)
        if step != first:
            raise ValueError(
                f"all ranks must resume from one checkpoint, but rank {trainer.global_rank} has read one of step "
                f"{step} and rank 0 one of step {first}: give --ckpt_path the older one by its name"
            )
        self._restored = dict(checkpoint.get(_KEY, {}))
        ranks = self._restored.pop("ranks", [])
        if len(ranks) == trainer.world_size:
            self._generators = ranks[trainer.global_rank]["generators"]
            loop = checkpoint["loops"]["fit_loop"]["state_dict"]
            loop["combined_loader"] = ranks[trainer.global_rank]["batches"]
        elif ranks and trainer.state.fn == TrainerFn.FITTING:
            loop = checkpoint["loops"]["fit_loop"]["state_dict"]
            states = zip(*(rank["batches"] for rank in ranks), strict=True)
            loop["combined_loader"] = [{**found[0], "ranks": list(found)} for found in states]
            rank_zero_warn(
                f"training resumes with {trainer.world_size} processes instead of {len(ranks)}, so it will differ from "
                "an uninterrupted run: random generators are seeded again, and each process reads other samples"
            )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the last values of all metrics: results of a run are those of its last validation."""
        trainer.callback_metrics.update(self._restored.pop("metrics", {}))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the step of the checkpoint, and begin the next epoch if that step ended one."""
        super().on_train_start(trainer, pl_module)
        self._saved = trainer.global_step
        self._recount(trainer)
        begin_next_epoch(trainer)

    @staticmethod
    def _recount(trainer: pl.Trainer) -> None:
        """If the global batch size has changed, tell Lightning how many batches of this epoch count as done."""
        loader = trainer.train_dataloader
        if resumes_within_epoch(trainer) and not hasattr(loader, "state_dict"):
            rank_zero_warn(
                "the loader does not say where it stands (it has no `state_dict`): training resumes with the "
                "first batches of the epoch, which were seen before"
            )
        if not isinstance(loader, ActivationLoader) or loader.sequence.before is None:
            return
        sequence, (length, per_step) = loader.sequence, loader.sequence.before
        rank_zero_warn(
            f"a training step takes {sequence.per_step} samples instead of {per_step} from here on, and an epoch "
            f"{len(sequence)} steps instead of {length}; samples of this epoch that were seen do not come again"
        )
        if trainer.num_training_batches != len(sequence):  # limit_train_batches counts batches, whatever they hold
            return
        done = batches_done(batches_read(trainer), length, per_step, len(sequence), sequence.per_step)
        count_batches(trainer, done, len(sequence))  # with all of them, what is left of the epoch fills no batch

    # ------------------------------------------------------------------ steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the state of the loops at steps that are due and at the last one of an epoch and of training."""
        step = trainer.global_step
        last = step == trainer.max_steps or trainer.is_last_batch or trainer.should_stop or stops(trainer)
        if self._is_due(step) or last:
            self._take(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Record the state of the loops, since other callbacks may end training after a validation."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._take(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave saving to the next step's start."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave saving to the next step's start."""

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Save the step before: all its curves are logged."""
        if self._generators is not None:
            restore_generators(self._generators)
            self._generators = None
        if self._taken is not None and self._is_due(self._taken[0]):
            self._save(trainer)
        self._taken = None

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the last step, unless it is there already."""
        if self._taken is None:  # nothing said that this step would be the last
            self._take(trainer)
        if self._taken is not None:
            self._save(trainer)
        self._taken = None

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Finish what a kill left undone after the last step's file, where nothing is left to train."""
        if trainer.is_global_zero and not trainer.fast_dev_run and self._path(trainer.global_step).exists():  # type: ignore[attr-defined]
            self._tidy(trainer.global_step)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save the last step where SIGTERM ended training in good order, unless it is there already."""
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != "fit":
            return
        if self._taken is not None:
            self._save(trainer)
            self._taken = None
        last = self._last
        how = (
            f"resume with --ckpt_path {last} (step {step_of(last)})" if last.exists() else "there is no checkpoint yet"
        )
        rank_zero_info(f"SIGTERM: training ends after step {trainer.global_step}; {how}")

    def _is_due(self, step: int) -> bool:
        return step % self._every == 0

    def _take(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        # with accumulated gradients several batches end at one step: it is saved once, when it was made
        known = self._saved if self._taken is None else self._taken[0]
        if step != known and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._taken = step, trainer.fit_loop.state_dict()

    # ------------------------------------------------------------------ saving

    def _save(self, trainer: pl.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
        assert self._taken is not None
        step = self._taken[0]
        self.best_model_path, self.last_model_path = str(self._path(step)), str(self._last)
        trainer.save_checkpoint(self.best_model_path)
        self._saved = trainer.global_step
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.after_save_checkpoint(proxy(self))
            self._tidy(step)
        trainer.strategy.barrier("RunCheckpoint")

    def _path(self, step: int) -> Path:
        return self._folder / f"step={step}.ckpt"

    @property
    def _last(self) -> Path:
        return self._folder / f"{self.CHECKPOINT_NAME_LAST}.ckpt"

    def _tidy(self, step: int) -> None:
        """Point `last.ckpt` at a step, and remove all but the checkpoints to keep."""
        try:
            if not self._last.is_symlink() or step_of(self._last) != step:
                replace_link(self._last, self._path(step))
            found = checkpoints_by_step(self._folder)
            kept = [other for other in found if other <= step][: self._keep]  # later ones: this run has left them
            kept += self._sound(found)
            for other in found.keys() - set(kept):
                found[other].unlink()
        except OSError as error:
            raise WriteError(WHAT, self._folder, error) from error

    def _sound(self, found: dict[int, Path]) -> list[int]:
        """The newest sound step among checkpoints by step, the newest first."""
        return [step for step in found if self.sound_until is not None and step <= self.sound_until][:1]

    def newest_sound(self) -> Path | None:
        """The newest checkpoint whose weights are known to be sound; None if there is none."""
        found = checkpoints_by_step(self._folder)
        return next((found[step] for step in self._sound(found)), None)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store the loops as they were at the end of the step, the last values of metrics, and random generators."""
        if self._taken is None:  # a checkpoint that another callback writes
            return
        checkpoint["loops"]["fit_loop"] = self._taken[1]
        metrics: dict[str, Tensor] = {key: value.detach().cpu() for key, value in trainer.callback_metrics.items()}
        checkpoint[_KEY] = {"metrics": metrics}
        own = {"generators": generator_states(), "batches": self._taken[1]["state_dict"].get("combined_loader", [])}
        ranks = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(ranks, own)
        checkpoint[_KEY]["ranks"] = ranks
