"""The command line: LightningCLI's fit, validate, test and predict for SAEs, and the commands that train nothing."""

import os
import shutil
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from sae_lightning import callbacks, data
from sae_lightning.callbacks.checkpoint_files import described, instead_of, newest_checkpoint, read_older
from sae_lightning.commands import COMMANDS
from sae_lightning.files import prepare_folder, remove_leftovers, replacing
from sae_lightning.loggers import MEMBERS, RunCSVLogger, RunTensorBoardLogger
from sae_lightning.modules.language_model import LanguageModel
from sae_lightning.modules.loading import read_checkpoint
from sae_lightning.modules.module import SAEModule
from sae_lightning.modules.run import CHECKPOINT_KEY, NonfiniteError, RunModule
from sae_lightning.modules.vision_model import VisionModel
from sae_lightning.parser import SAEParser, fail, innermost
from sae_lightning.resume import DATA_KEY, DataRecord, data_changes, describe_data

_SAE_CALLBACKS = (  # what a model of language or images has no use for
    callbacks.ConceptRecovery,
    callbacks.RecoveryFigures,
    callbacks.ReceptiveFields,
    callbacks.GeometryFigures,
    callbacks.RecoveryTable,
    callbacks.TrainingDynamics,
    callbacks.CodesWriter,
    callbacks.DownstreamFidelity,
    callbacks.TopActivations,
    callbacks.VisibilityReport,
    callbacks.ReportPage,
)
_REPORTS: dict[type[Callback], type[RunModule]] = {  # what only one kind of model has a use for
    callbacks.GrammarReport: LanguageModel,
    callbacks.FeatureReport: VisionModel,
}
_FIRST_FILES = ("events.out.tfevents.", ".config.yaml.", "probe", ".probe.")  # what a run writes before config.yaml
_SIZES = ("d_in", "image_size", "channels")  # which a checkpoint and its data must share
_LINKED = (*_SIZES, "grammar_text")  # arguments of models that come from the data
# what starts processes that cannot tell each other anything, and the variable that says how many
_OUTER_LAUNCHERS = ((TorchElasticEnvironment, "WORLD_SIZE"), (SLURMEnvironment, "SLURM_NTASKS"))
_RUN_DIR_VARIABLE = "SAE_LIGHTNING_RUN_DIR"  # how the first process tells the ones it launches


class _ConfigWriter(SaveConfigCallback):
    """Writes the run's configuration; Lightning's own file is not written atomically."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask for the folder on every rank, since that communicates, and write the file on rank zero."""
        self._folder = Path(trainer.log_dir or ".")
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write the file; Lightning calls this on rank zero only."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with replacing(self._folder / self.config_filename, "w", encoding="utf-8") as file:
            file.write(self.parser.dump(self.config, skip_none=False))


class SAECLI(LightningCLI):
    """LightningCLI with a run folder, default callbacks, and data linked to the model.

    Everything that a run writes lies in `run_dir`: TensorBoard events, metrics.csv, config.yaml, checkpoints,
    figures and results.json.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        self._checkpoint_sizes: dict[str, int] = {}
        self._checkpoint_data: dict[str, Any] | None = None
        self._checkpoint_step = 0
        self._first_step: int | None = None  # with which a run goes on in its own folder
        self._data: dict[str, Any] = {}
        self._to_delete: Path | None = None  # an earlier run, until everything else is known to be right
        super().__init__(
            RunModule,
            data.SeededDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # SAEs describe themselves, also as members of a Comparison
            save_config_callback=_ConfigWriter,
            save_config_kwargs={"save_to_log_dir": False},  # which would write, and refuse, the file in its own way
            trainer_defaults={"max_epochs": 1},
            parser_class=SAEParser,
            parser_kwargs={
                "description": "Train, test and compare sparse autoencoders. Besides the subcommands below there is "
                f"`sae-lightning {'`, `sae-lightning '.join(COMMANDS)}` (with a --help of its own)."
            },
            args=args,
        )

    # ------------------------------------------------------------------ arguments

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the run's own arguments, the default callbacks and the link from data to model."""
        parser.add_argument(
            "--run_dir",
            type=str | None,
            default=None,
            help="Folder of everything that the run writes; for fit it must be new (or --overwrite, or a resumed run). "
            "Default: runs/<time>-<model> for fit, the checkpoint's run otherwise; torchrun and SLURM need it given.",
        )
        parser.add_argument(
            "--overwrite", type=bool, default=False, help="Whether fit may delete an earlier run in run_dir."
        )
        parser.add_argument(
            "--allow_changed_data",
            type=bool,
            default=False,
            help="Whether fit may go on from a checkpoint with other data, or other arguments of it, than before.",
        )
        parser.add_argument(
            "--num_threads",
            type=int | None,
            default=None,
            help="CPU threads per process; small SAEs run fastest with 1. Default: torch's choice.",
        )
        parser.add_lightning_class_args(callbacks.RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(callbacks.GracefulStop, "stop")
        parser.add_lightning_class_args(callbacks.NonfiniteLoss, "nonfinite")
        parser.add_lightning_class_args(callbacks.Divergence, "divergence")
        parser.add_lightning_class_args(callbacks.ConceptRecovery, "recovery")
        parser.add_lightning_class_args(callbacks.RecoveryFigures, "figures")
        parser.add_lightning_class_args(callbacks.ReceptiveFields, "receptive_fields")
        parser.add_lightning_class_args(callbacks.GeometryFigures, "geometry")
        parser.add_lightning_class_args(callbacks.RecoveryTable, "table")
        parser.add_lightning_class_args(callbacks.TrainingDynamics, "dynamics")
        parser.add_lightning_class_args(callbacks.CodesWriter, "codes")
        parser.add_lightning_class_args(callbacks.SAEProgressBar, "progress")
        parser.add_lightning_class_args(callbacks.DownstreamFidelity, "fidelity")
        parser.add_lightning_class_args(callbacks.TopActivations, "meaning")
        parser.add_lightning_class_args(callbacks.VisibilityReport, "visibility")
        parser.add_lightning_class_args(callbacks.ReportPage, "page")
        parser.add_lightning_class_args(callbacks.GrammarReport, "grammar")
        parser.add_lightning_class_args(callbacks.FeatureReport, "features")
        # a link concerns the models that have its target
        for name in _LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Leave the printing of results to our own table."""
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand in ("validate", "test"):
            parser.set_defaults({"verbose": False})
        return parser

    def _parse_ckpt_path(self) -> None:
        """Let the class and hyperparameters of a checkpoint win over the command line, and say so."""
        command = self.config.subcommand
        given = self.config[command]
        path = given.get("ckpt_path")
        if path is None:
            if command != "fit" and not given.trainer.get("fast_dev_run"):
                fail(f"{command} needs trained weights: --ckpt_path, such as RUN_DIR/checkpoints/last.ckpt")
            if given.get("model") is None:
                fail("a model is needed: --model, or the --ckpt_path of one")
            return
        checkpoint = self._read_checkpoint(command, given)
        saved = checkpoint[CHECKPOINT_KEY]
        self._checkpoint_step = checkpoint["global_step"]
        self._checkpoint_data = checkpoint.get(DATA_KEY)
        self._checkpoint_sizes = {key: saved["init_args"][key] for key in _SIZES if key in saved["init_args"]}
        saved_args = {key: value for key, value in saved["init_args"].items() if key not in _LINKED}
        model = given.model
        given_args = {} if model is None else model.get("init_args", {})
        if model is not None:
            if _short(model.class_path) != _short(saved["class_path"]):
                fail(
                    f"--ckpt_path is a checkpoint of {saved['class_path']}, but --model is {model.class_path}: "
                    f"use the config of its run, or leave --model out"
                )
            changed = list(_differences(model.get("init_args", {}), saved_args))
            if changed:
                rank_zero_warn("the checkpoint's hyperparameters replace what was given: " + "; ".join(changed))
        merged = {"class_path": saved["class_path"], "init_args": _merged(given_args, saved_args)}
        self.config = self.parser.parse_object({command: {"model": merged}}, self.config)

    @staticmethod
    def _read_checkpoint(command: str, given: Any) -> dict[str, Any]:
        """Read --ckpt_path; training goes on from an older checkpoint of the run where it is damaged."""
        path = Path(given.ckpt_path)
        try:
            return read_checkpoint(path)
        except FileNotFoundError as error:
            if not path.is_symlink():
                fail(
                    f"--ckpt_path: there is no file {str(path)!r}; a run that ended before its first checkpoint "
                    "(--checkpoint.every_n_steps) is started anew with --overwrite true instead"
                )
            problem: Exception = error
        except (OSError, ValueError) as error:
            problem = error
        if command != "fit":  # other weights than those that were asked for would go unnoticed
            fail(f"--ckpt_path: {problem}{instead_of(path)}")
        found = read_older(path)
        if found is None:
            fail(f"--ckpt_path: {problem}")
        given.ckpt_path, checkpoint = str(found[0]), found[1]
        rank_zero_warn(f"{described(path)} is damaged, so training goes on from {described(found[0])}: {problem}")
        return checkpoint

    # ------------------------------------------------------------------ the run's folder

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder before anything is built."""
        command = self.config.subcommand
        config = self.config[command]
        if config.num_threads is not None:
            if config.num_threads < 1:
                fail(f"num_threads must be at least 1, but is {config.num_threads}")
            torch.set_num_threads(config.num_threads)
        config.run_dir = self._run_dir(command, config)
        run_dir = Path(config.run_dir)
        resumed = config.ckpt_path is not None and run_dir.resolve() in Path(config.ckpt_path).resolve().parents
        if command == "fit":
            self._check_data(config)
            if resumed:
                self._first_step = self._checkpoint_step
            elif getattr(rank_zero_only, "rank", 0) == 0:
                self._claim(run_dir, Path(config.checkpoint.dirpath or run_dir / "checkpoints"), config.overwrite)
        config.overwrite = config.allow_changed_data = False  # so that the saved config, run again, asks anew
        self.save_config_kwargs["config_filename"] = "config.yaml" if command == "fit" else f"config-{command}.yaml"

    @staticmethod
    def _run_dir(command: str, config: Any) -> str:
        if config.run_dir is not None:
            return str(config.run_dir)
        if getattr(rank_zero_only, "rank", 0) != 0 and _RUN_DIR_VARIABLE in os.environ:
            return os.environ[_RUN_DIR_VARIABLE]
        if config.ckpt_path is not None and Path(config.ckpt_path).parent.name == "checkpoints":
            return str(Path(config.ckpt_path).parent.parent)
        if config.trainer.num_nodes > 1 or any(e.detect() and int(os.environ[n]) > 1 for e, n in _OUTER_LAUNCHERS):
            fail(
                "--run_dir must be given where torchrun, SLURM or several nodes start the processes, "
                "for each of them would name a folder by its own clock"
            )
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{_short(config.model.class_path)}"
        os.environ[_RUN_DIR_VARIABLE] = str(Path("runs", name))
        return os.environ[_RUN_DIR_VARIABLE]

    def _check_data(self, config: Any) -> None:
        """Refuse to go on with other data than those of the checkpoint, unless asked to."""
        self._data = describe_data(self._plain(config)["data"], torch.initial_seed())
        if config.ckpt_path is None:
            return
        if self._checkpoint_data is None:
            rank_zero_warn("the checkpoint does not say which data it was trained on, so this is not compared")
            return
        changed = "; ".join(data_changes(self._checkpoint_data, self._data))
        if changed and not config.allow_changed_data:
            fail(
                f"--ckpt_path was trained on other data: {changed}. Give the data as they were, "
                "or --allow_changed_data true to go on with these"
            )
        if changed:
            rank_zero_warn(f"training goes on with other data: {changed}")

    def _plain(self, config: Any) -> dict[str, Any]:
        """A command's configuration in plain values."""
        import yaml

        plain: dict[str, Any] = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_none=False))
        return plain

    def _claim(self, run_dir: Path, checkpoints: Path, overwrite: bool) -> None:
        """Make sure that the folder is new, or an earlier run that may be deleted."""
        if run_dir.exists() and not run_dir.is_dir():
            fail(f"run_dir must be a folder, but {str(run_dir)!r} is a file")
        files = [path for path in run_dir.rglob("*") if path.is_file()]
        if not files:  # a kill may leave empty folders
            return
        if not overwrite:
            newest = newest_checkpoint(checkpoints)
            go_on = f"continue it with --ckpt_path {newest}" if newest else "it has no checkpoint to continue from"
            fail(
                f"run_dir {str(run_dir)!r} exists already: choose another --run_dir, {go_on}, "
                "or replace it with --overwrite true"
            )
        if not (run_dir / "config.yaml").is_file() and not all(path.name.startswith(_FIRST_FILES) for path in files):
            fail(f"run_dir {str(run_dir)!r} holds no earlier run (no config.yaml), so it is not deleted")
        self._to_delete = run_dir

    # ------------------------------------------------------------------ building

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; a wrong argument ends with its message alone."""
        try:
            super().instantiate_classes()
            for name, size in self._checkpoint_sizes.items():
                given = getattr(self.datamodule, name, None)
                if given != size:
                    raise ValueError(f"--ckpt_path has {name} = {size}, but the data has {name} = {given}")
            self._prepare_checkpoints()
            if self._to_delete is not None:
                shutil.rmtree(self._to_delete)
            if self.trainer.is_global_zero:
                run_dir = Path(self.config[self.subcommand].run_dir)
                remove_leftovers(run_dir)
                for name in ("figures", MEMBERS):
                    remove_leftovers(run_dir / name, recursive=True)
        except (ValueError, TypeError, OSError, MisconfigurationException) as error:
            if os.environ.get("SAE_LIGHTNING_TRACEBACK"):
                raise
            fail(innermost(error))

    def _prepare_checkpoints(self) -> None:
        """See whether the run can write its checkpoints, before anything is written or deleted."""
        if self.subcommand != "fit" or self.config.fit.trainer.fast_dev_run or not self.trainer.is_global_zero:
            return
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, callbacks.RunCheckpoint):
                prepare_folder(Path(callback.dirpath or Path(self.config.fit.run_dir, "checkpoints")), "checkpoints")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; where a disk, a folder or the numbers fail, end with status 1 and a message alone."""
        try:
            super()._run_subcommand(subcommand)
        except (OSError, NonfiniteError) as error:
            if os.environ.get("SAE_LIGHTNING_TRACEBACK"):
                raise
            fail(str(error), 1)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Add the run folder's loggers where the user named none."""
        config = self.config[self.config.subcommand]
        if config.trainer.logger in (None, True) and not config.trainer.barebones:
            kwargs["logger"] = [
                logger(config.run_dir, self._first_step) for logger in (RunTensorBoardLogger, RunCSVLogger)
            ]
        if config.trainer.default_root_dir is None:
            kwargs["default_root_dir"] = config.run_dir
        return super().instantiate_trainer(**kwargs)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks_: list[Callback]) -> Trainer:
        """Leave out default callbacks that the user switched off, and store the config with the results."""
        off: tuple[type[Callback], ...] = () if isinstance(self.model, SAEModule) else _SAE_CALLBACKS
        for report, model in _REPORTS.items():
            if not isinstance(self.model, model):
                off += (report,)
        if config.get("enable_progress_bar") is False or config.get("barebones"):
            off += (ProgressBar,)
        if config.get("enable_checkpointing") is False or config.get("barebones"):
            off += (ModelCheckpoint,)
        kept = [callback for callback in callbacks_ if not isinstance(callback, off)]
        if self.subcommand == "fit":
            kept.append(DataRecord(self._data))
        if not config.get("barebones"):
            kept.append(callbacks.ResultsWriter(self._plain(self.config[self.config.subcommand])))
        return super()._instantiate_trainer(config, kept)


def _short(class_path: str) -> str:
    return class_path.rpartition(".")[2]


def _merged(given: Any, saved: Any) -> Any:
    """What was saved, with what was given where nothing was saved (optimizers and schedules)."""
    given = given.as_dict() if hasattr(given, "as_dict") else given
    if isinstance(given, dict) and isinstance(saved, dict):
        return {**given, **{key: _merged(given.get(key), value) for key, value in saved.items()}}
    return saved


def _differences(given: Any, saved: Any, path: str = "model") -> Any:
    """Yield a sentence for each plain value in `given` that `saved` has otherwise."""
    given = given.as_dict() if hasattr(given, "as_dict") else given
    if isinstance(given, dict) and isinstance(saved, dict):
        for key in sorted(given.keys() & saved.keys()):
            if key == "class_path":
                if _short(given[key]) != _short(saved[key]):
                    yield f"{path} {given[key]} by {saved[key]}"
            else:
                yield from _differences(given[key], saved[key], path if key == "init_args" else f"{path}.{key}")
    elif given != saved:
        yield f"{path}={given} by {saved}"


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None takes `sys.argv`.
    """
    # batches are indexed out of memory: Lightning's advice to use worker processes does not apply
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    # the module checks batches before their transfer, whatever the data module is
    warnings.filterwarnings("ignore", message=".*overridden `on_before_batch_transfer` in `LightningModule`.*")
    # Lightning 2.6 uses a name that torch 2.13 deprecates
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")
    # what is logged of an epoch is the same on all ranks: our metrics have combined them
    warnings.filterwarnings("ignore", message=r".*when logging on epoch level in distributed setting.*")
    # Lightning 2.6 gathers with a function that torch 2.13 deprecates
    warnings.filterwarnings("ignore", message=r".*torch.distributed.nn.functional.all_gather is deprecated.*")
    given = sys.argv[1:] if args is None else args
    if given and given[0] in COMMANDS:
        COMMANDS[given[0]](given[1:])
        return
    if args is not None:  # a notebook's or test's own command line is no argument of ours
        warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter is intended.*")
    SAECLI(args)


if __name__ == "__main__":
    main()
