"""LightningCLI's fit, validate, test and predict for SAEs: arguments, and what is built from them."""

import copy
import os
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn

from sae_lightning import callbacks
from sae_lightning.callbacks.base import in_order
from sae_lightning.cli.checkpoint_path import LINKED, GivenCheckpoint, read_given
from sae_lightning.cli.parser import SAEParser, fail, innermost
from sae_lightning.cli.resume import DataRecord, data_changes, describe_data
from sae_lightning.cli.run_callbacks import Beginning, ConfigWriter, NextCommand
from sae_lightning.cli.run_folder import FolderUse, choose_run_dir
from sae_lightning.data.plain import activation_size
from sae_lightning.modules.run import NonfiniteError, RunModule
from sae_lightning.moved import current
from sae_lightning.run.folder import RunFolder
from sae_lightning.run.lightning_internals import CheckpointCLI
from sae_lightning.run.loggers import RunCSVLogger, RunTensorBoardLogger

_USER_ERRORS = (ValueError, TypeError, OSError, MisconfigurationException)


class SAECLI(CheckpointCLI):
    """LightningCLI with a run folder, default callbacks, and data linked to the model.

    Everything that a run writes lies in `run_dir`: TensorBoard events, metrics.csv, config.yaml, checkpoints,
    figures and results.json.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        self._checkpoint: GivenCheckpoint | None = None
        self._data: dict[str, Any] = {}
        self._given_sizes: dict[str, Any] = {}  # sizes that the user gave although the data define them
        self._folder: FolderUse | None = None
        self._built = False
        self._beginning = Beginning(self._begun)
        try:
            self._run(args)
        finally:
            if self._folder is not None:
                self._folder.release()

    def _run(self, args: list[str] | None) -> None:
        """Parse, build and run. A failing disk or folder, or a nonfinite value, ends the program with one line.

        Its status is then 1. Wrong data or arguments found before the first training step end it with status 2 and
        leave the folder unchanged; later errors keep their traceback.
        """
        try:
            super().__init__(
                RunModule,
                LightningDataModule,
                subclass_mode_model=True,
                subclass_mode_data=True,
                seed_everything_default=0,
                auto_configure_optimizers=False,
                load_from_checkpoint_support=False,  # SAEs describe themselves, also as members of a Comparison
                save_config_callback=None,  # a callback of our own writes it, the checkpoint's model included
                parser_class=SAEParser,
                args=args,
            )
        except (*_USER_ERRORS, NonfiniteError) as error:
            expected = isinstance(error, (OSError, NonfiniteError))
            shown = os.environ.get("SAE_LIGHTNING_TRACEBACK") or (self._beginning.begun and not expected)
            if shown or not self._built:
                raise
            fail(str(error), 1 if expected else 2)
        finally:
            if self._built and self._folder is not None and not self._beginning.begun:
                self._folder.undo()

    def _begun(self) -> None:
        if self._folder is not None:
            self._folder.commit()

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
            help="Whether fit may resume from a checkpoint with other data, or other arguments of them, than before.",
        )
        parser.add_argument(
            "--num_threads",
            type=int | None,
            default=None,
            help="CPU threads per process; small SAEs run fastest with 1. Default: torch's choice.",
        )
        parser.add_argument(
            "--trust",
            type=list[str],
            default=[],
            help="Modules to import whose classes the checkpoint of --ckpt_path may name, such as [my_sae]. Classes of "
            "this package, and those that the command line names, are known without it.",
        )
        for default in callbacks.DEFAULT:
            parser.add_lightning_class_args(default, default.key)
        # a link concerns the models that have its target
        for name in LINKED:
            parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")

    def take_checkpoint(self) -> None:
        """Let the class and hyperparameters of a checkpoint win over the command line, and say so."""
        command = self.config.subcommand
        given = self.config[command]
        if given.get("model") is not None:
            self._given_sizes = {name: given.model.get("init_args", {}).get(name) for name in LINKED}
        if given.get("ckpt_path") is None:
            if command != "fit" and not given.trainer.get("fast_dev_run"):
                fail(f"{command} needs trained weights: --ckpt_path, such as RUN_DIR/checkpoints/last.ckpt")
            if given.get("model") is None:
                fail("a model is needed: --model, or the --ckpt_path of one")
            return
        self._checkpoint = read_given(command, given, self._plain()["model"])
        given.model = None

    def _plain(self) -> dict[str, Any]:
        """The command's configuration in plain values, with the model of its checkpoint."""
        dumped = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        plain: dict[str, Any] = dumped[self.config.subcommand]
        if self._checkpoint is not None:
            plain["model"] = self._checkpoint.model
        return plain

    def before_instantiate_classes(self) -> None:
        """Settle the run's folder before anything is built."""
        command = self.config.subcommand
        config = self.config[command]
        if config.num_threads is not None:
            if config.num_threads < 1:
                fail(f"num_threads must be at least 1, but is {config.num_threads}")
            torch.set_num_threads(config.num_threads)
        if config.trainer.max_epochs is None:  # whatever limit was given decides; without one, one epoch
            limited = config.trainer.max_steps != -1 or config.trainer.max_time is not None
            config.trainer.max_epochs = -1 if limited else 1
        model = config.model.class_path if self._checkpoint is None else self._checkpoint.model["class_path"]
        config.run_dir = choose_run_dir(config, model)
        if command == "fit":
            self._check_data(config)
        self._folder = FolderUse(command, config)
        config.overwrite = config.allow_changed_data = False  # so that the saved config, run again, asks again

    def _check_data(self, config: Any) -> None:
        """Refuse to resume with other data than those of the checkpoint, unless asked to."""
        self._data = describe_data(self._plain()["data"], torch.initial_seed())
        if self._checkpoint is None:
            return
        if self._checkpoint.data is None:
            rank_zero_warn("the checkpoint does not say which data it was trained on, so this is not compared")
            return
        changed = "; ".join(data_changes(current(self._checkpoint.data), self._data))
        if changed and not config.allow_changed_data:
            fail(
                f"--ckpt_path was trained on other data: {changed}. Give the data as they were, "
                "or --allow_changed_data true to resume with these"
            )
        if changed:
            rank_zero_warn(f"training resumes with other data: {changed}")

    # ------------------------------------------------------------------ building

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; a wrong argument ends with its message alone."""
        assert self._folder is not None
        try:
            self._build()
            self._folder.take(self.trainer)
        except _USER_ERRORS as error:
            if os.environ.get("SAE_LIGHTNING_TRACEBACK"):
                raise
            fail(innermost(error))

    def after_instantiate_classes(self) -> None:
        """From here on, errors are those of the run."""
        self._built = True

    def _build(self) -> None:
        command = self.config.subcommand
        self.parser.add_instantiator(self._make_data, LightningDataModule, subclasses=True)
        self.parser.add_instantiator(self._make_model, RunModule, subclasses=True)
        self.config_init = self.parser.instantiate(self._with_log_folder(self.config))
        built = self.config_init[command]
        self.datamodule = built.get("data")
        self.model = built.get("model") if self._checkpoint is None else self._checkpoint.module
        self._check_sizes()
        if command == "fit":
            self.model.optimizer_records()  # refuses what cannot be made
        self.trainer = self.instantiate_trainer()

    def _make_data(self, cls: type[LightningDataModule], *args: Any, **kwargs: Any) -> LightningDataModule:
        made = self.datamodule = cls(*args, **kwargs)
        return made

    def _make_model(self, cls: type[RunModule], *args: Any, **kwargs: Any) -> RunModule:
        """Build a model; if the data have no `d_in`, read it from a batch."""
        if "d_in" in kwargs and kwargs["d_in"] is None and isinstance(self.datamodule, LightningDataModule):
            kwargs["d_in"] = activation_size(self.datamodule)
        return cls(*args, **kwargs)

    def _check_sizes(self) -> None:
        """Compare what the model takes from the data with what was given, and with what a checkpoint has."""
        for name in LINKED:
            actual, given = getattr(self.datamodule, name, None), self._given_sizes.get(name)
            if actual is None:
                continue
            if given not in (None, actual):
                raise ValueError(
                    f"--model.{name} must be that of the data, {actual!r}, but is {given!r} (leave it out: the data "
                    "tell it)"
                )
            if self._checkpoint is not None:
                self._checkpoint.require_size(name, actual)

    @staticmethod
    def _with_log_folder(config: Any) -> Any:
        """The configuration with the run's folder for loggers that would write to the current one."""
        command = config[config.subcommand]
        config = copy.copy(config)
        config[config.subcommand] = command = copy.deepcopy(command)
        named = command.trainer.logger if isinstance(command.trainer.logger, list) else [command.trainer.logger]
        for logger in named:
            init_args: Any = getattr(logger, "init_args", {})
            if "save_dir" in init_args and init_args["save_dir"] in (None, "."):
                init_args["save_dir"] = command.run_dir
        return config

    # ------------------------------------------------------------------ trainer and callbacks

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Make the trainer, with the run folder's loggers where the user named none, and all callbacks."""
        command = self.config[self.config.subcommand]
        config = {**self.config_init[self.config.subcommand]["trainer"], **kwargs}
        if command.trainer.logger in (None, True) and not command.trainer.barebones:
            resumed = self._checkpoint if self._folder is not None and self._folder.resumes_training else None
            first_step = None if resumed is None else resumed.step
            config["logger"] = [logger(command.run_dir, first_step) for logger in (RunTensorBoardLogger, RunCSVLogger)]
        if command.trainer.default_root_dir is None:
            config["default_root_dir"] = command.run_dir
        given = config["callbacks"] or []
        given = given if isinstance(given, list) else [given]
        if config["enable_model_summary"] is None:  # Lightning's has a row for our metrics, and columns of zeros
            config["enable_model_summary"] = False
            given = [*given, callbacks.ModelOverview()]
        config["callbacks"] = in_order([*given, *self._default_callbacks(config), *self._run_callbacks(config)])
        return Trainer(**config)

    def _default_callbacks(self, config: dict[str, Any]) -> list[Callback]:
        """Those of `callbacks.DEFAULT` that serve the model, but for what the user switched off."""
        off: tuple[type[Callback], ...] = ()
        if config["enable_progress_bar"] is False or config["barebones"]:
            off += (ProgressBar,)
        if config["enable_checkpointing"] is False or config["barebones"]:
            off += (ModelCheckpoint,)
        served = [kind for kind in callbacks.DEFAULT if isinstance(self.model, kind.serves)]
        made: list[Callback] = [
            self.config_init[self.config.subcommand][kind.key] for kind in served if not issubclass(kind, off)
        ]
        for callback in made:  # Lightning would put checkpoints into the folder of the first logger
            if isinstance(callback, callbacks.RunCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(Path(self.config[self.config.subcommand].run_dir, "checkpoints"))
        return made

    def _run_callbacks(self, config: dict[str, Any]) -> list[Callback]:
        """What looks after the run's folder."""
        command = self.config.subcommand
        run_dir, plain = Path(self.config[command].run_dir), self._plain()
        made: list[Callback] = []
        if not config["fast_dev_run"]:  # which writes nothing
            made.append(RunFolder(run_dir))
        if command == "fit":
            made += [DataRecord(self._data), self._beginning]
        if not config["barebones"]:
            name = "config.yaml" if command == "fit" else f"config-{command}.yaml"
            made += [callbacks.ResultsWriter(plain), ConfigWriter(plain, run_dir / name)]
        if command == "fit" and not config["fast_dev_run"]:
            made.append(NextCommand(run_dir))
        return made
