"""The commands that train and test: LightningCLI's fit, validate, test and predict for SAEs."""

import copy
import inspect
import itertools
import logging
import os
import shlex
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, loggers
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from sae_lightning import callbacks
from sae_lightning.callbacks.base import RunCallback, in_order
from sae_lightning.callbacks.checkpoint_files import described, instead_of, newest_checkpoint, read_older
from sae_lightning.cli.config_files import configs_first
from sae_lightning.cli.parser import SAEParser, fail, innermost
from sae_lightning.cli.resume import (
    DATA_KEY,
    DataRecord,
    data_changes,
    describe_data,
    merged,
    model_changes,
    short_name,
    take_optimizers,
)
from sae_lightning.data.plain import activation_size
from sae_lightning.modules.loading import module_of, trust_modules
from sae_lightning.modules.run import NonfiniteError, RunModule
from sae_lightning.moved import current
from sae_lightning.run.checkpoint import CHECKPOINT_KEY, read_checkpoint
from sae_lightning.run.files import prepare_folder, remove_leftovers, replacing
from sae_lightning.run.folder import Replacement, RunFolder, RunLock, is_unused, may_replace
from sae_lightning.run.loggers import MEMBERS, RunCSVLogger, RunTensorBoardLogger

_SIZES = ("d_in", "image_size", "channels")  # which a checkpoint and its data must share
_LINKED = (*_SIZES, "grammar_text")  # arguments of models that come from the data
# what starts processes that cannot tell each other anything, and the variable that says how many
_OUTER_LAUNCHERS = ((TorchElasticEnvironment, "WORLD_SIZE"), (SLURMEnvironment, "SLURM_NTASKS"))
_RUN_DIR_VARIABLE = "SAE_LIGHTNING_RUN_DIR"  # how the first process tells the ones it launches


class _ConfigWriter(Callback):
    """Writes the run's configuration into its folder."""

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


class _Beginning(Callback):
    """Notices when training has begun: its first step is made.

    Args:
        then: What is called then, once.
    """

    def __init__(self, then: Callable[[], None]) -> None:
        self.begun = False
        self._then = then

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take note."""
        if not self.begun:
            self.begun = True
            self._then()


class _NextCommand(Callback):
    """Says after training how to go on."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir = run_dir

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the literal command, if there is a checkpoint to test."""
        checkpoint = trainer.checkpoint_callback
        last = getattr(checkpoint, "last_model_path", "") or getattr(checkpoint, "best_model_path", "")
        if trainer.is_global_zero and last:
            config = shlex.quote(str(self._run_dir / "config.yaml"))
            print(f"Next:        sae-lightning test -c {config} --ckpt_path {shlex.quote(str(last))}", flush=True)


class SAECLI(LightningCLI):
    """LightningCLI with a run folder, default callbacks, and data linked to the model.

    Everything that a run writes lies in `run_dir`: TensorBoard events, metrics.csv, config.yaml, checkpoints,
    figures and results.json.
    """

    def __init__(self, args: list[str] | None = None) -> None:
        self._checkpoint_data: dict[str, Any] | None = None
        self._checkpoint_step = 0
        self._checkpoint_module: RunModule | None = None
        self._checkpoint_model: dict[str, Any] | None = None  # how it is built and trained, in plain values
        self._first_step: int | None = None  # with which a run goes on in its own folder
        self._data: dict[str, Any] = {}
        self._given_sizes: dict[str, Any] = {}  # of the model, where the user gave what the data tell
        self._new = self._overwrites = False
        self._replacement: Replacement | None = None
        self._beginning = _Beginning(self._begun)
        self._lock: RunLock | None = None
        try:
            self._run(args)
        finally:
            if self._lock is not None:
                self._lock.release()

    def _run(self, args: list[str] | None) -> None:
        super().__init__(
            RunModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,  # SAEs describe themselves, also as members of a Comparison
            save_config_callback=None,  # a callback of our own writes it atomically, the checkpoint's model included
            parser_class=SAEParser,
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
        if given.get("model") is not None:
            self._given_sizes = {name: given.model.get("init_args", {}).get(name) for name in _LINKED}
        path = given.get("ckpt_path")
        if path is None:
            if command != "fit" and not given.trainer.get("fast_dev_run"):
                fail(f"{command} needs trained weights: --ckpt_path, such as RUN_DIR/checkpoints/last.ckpt")
            if given.get("model") is None:
                fail("a model is needed: --model, or the --ckpt_path of one")
            return
        try:
            trust_modules(given.trust)
        except ValueError as error:
            fail(f"--{error}")
        checkpoint = self._read_checkpoint(command, given)
        saved = current(checkpoint[CHECKPOINT_KEY])
        self._check_model(given, saved)
        try:  # nothing in it reaches the parser, which would import whatever class it names
            self._checkpoint_module = module_of(checkpoint, given.ckpt_path)
        except ValueError as error:
            fail(f"--ckpt_path: {error}")
        self._checkpoint_step = checkpoint.get("global_step", 0)
        self._checkpoint_data = checkpoint.get(DATA_KEY)
        take_optimizers(self._checkpoint_module, given.model)
        init_args = {key: value for key, value in saved["init_args"].items() if key not in _LINKED}
        known = merged((self._plain(given)["model"] or {}).get("init_args", {}), init_args)
        self._checkpoint_model = {"class_path": saved["class_path"], "init_args": known}
        given.model = None

    def _check_model(self, given: Any, saved: dict[str, Any]) -> None:
        """Refuse a checkpoint of another class than --model, and warn of arguments that it replaces."""
        model = self._plain(given)["model"]
        if model is None:
            return
        if short_name(model["class_path"]) != short_name(saved["class_path"]):
            fail(
                f"--ckpt_path is a checkpoint of {saved['class_path']}, but --model is {model['class_path']}: "
                f"use the config of its run, or leave --model out"
            )
        init_args = {key: value for key, value in saved["init_args"].items() if key not in _LINKED}
        changed = list(model_changes(model.get("init_args", {}), init_args))
        if changed:
            rank_zero_warn("the checkpoint's hyperparameters replace what was given: " + "; ".join(changed))

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
                    "(--checkpoint.every_n_steps) must be started again, with --overwrite true"
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
        if config.trainer.max_epochs is None:  # whatever limit was given decides; without one, one epoch
            limited = config.trainer.max_steps != -1 or config.trainer.max_time is not None
            config.trainer.max_epochs = -1 if limited else 1
        config.run_dir = self._run_dir(command, config)
        run_dir = Path(config.run_dir)
        resumed = config.ckpt_path is not None and run_dir.resolve() in Path(config.ckpt_path).resolve().parents
        self._new = command == "fit" and not resumed
        self._overwrites = config.overwrite
        if command == "fit":
            self._check_data(config)
            if resumed:
                self._first_step = self._checkpoint_step
        if self._new and self._is_first_process:
            self._check_folder()
        config.overwrite = config.allow_changed_data = False  # so that the saved config, run again, asks anew

    @property
    def _is_first_process(self) -> bool:
        return getattr(rank_zero_only, "rank", 0) == 0

    def _run_dir(self, command: str, config: Any) -> str:
        if config.run_dir is not None:
            return str(config.run_dir)
        if not self._is_first_process and _RUN_DIR_VARIABLE in os.environ:
            return os.environ[_RUN_DIR_VARIABLE]
        if config.ckpt_path is not None and Path(config.ckpt_path).parent.name == "checkpoints":
            return str(Path(config.ckpt_path).parent.parent)
        if config.trainer.num_nodes > 1 or any(e.detect() and int(os.environ[n]) > 1 for e, n in _OUTER_LAUNCHERS):
            fail(
                "--run_dir must be given where torchrun, SLURM or several nodes start the processes, "
                "for each of them would name a folder by its own clock"
            )
        model = config.model.class_path if self._checkpoint_model is None else self._checkpoint_model["class_path"]
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{short_name(model)}"
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
        changed = "; ".join(data_changes(current(self._checkpoint_data), self._data))
        if changed and not config.allow_changed_data:
            fail(
                f"--ckpt_path was trained on other data: {changed}. Give the data as they were, "
                "or --allow_changed_data true to go on with these"
            )
        if changed:
            rank_zero_warn(f"training goes on with other data: {changed}")

    def _plain(self, config: Any) -> dict[str, Any]:
        """A command's configuration in plain values, with the model of its checkpoint."""
        import yaml

        plain: dict[str, Any] = yaml.safe_load(self._parser(self.config.subcommand).dump(config, skip_none=False))
        if self._checkpoint_model is not None:
            plain["model"] = self._checkpoint_model
        return plain

    def _check_folder(self) -> None:
        """Make sure that the run's folder is new, or an earlier run that may be replaced."""
        config = self.config[self.config.subcommand]
        run_dir = Path(config.run_dir)
        if run_dir.exists() and not run_dir.is_dir():
            fail(f"run_dir must be a folder, but {str(run_dir)!r} is a file")
        if is_unused(run_dir):
            return
        if not self._overwrites:
            newest = newest_checkpoint(Path(config.checkpoint.dirpath or run_dir / "checkpoints"))
            ways = ["choose another --run_dir", *([f"resume it with --ckpt_path {newest}"] if newest else [])]
            if may_replace(run_dir):
                why = "" if newest else " (it has no checkpoint to resume from)"
                ways.append(f"replace it with --overwrite true{why}")
            fail(f"run_dir {str(run_dir)!r} exists already: {', or '.join(ways)}")
        if not may_replace(run_dir):
            fail(f"run_dir {str(run_dir)!r} holds no earlier run (no config.yaml), so it is not deleted")

    # ------------------------------------------------------------------ building

    def instantiate_classes(self) -> None:
        """Build data, model and trainer; a wrong argument ends with its message alone."""
        try:
            self._build()
            self._take_folder()
        except (ValueError, TypeError, OSError, MisconfigurationException) as error:
            if os.environ.get("SAE_LIGHTNING_TRACEBACK"):
                raise
            fail(innermost(error))

    def _build(self) -> None:
        self.parser.add_instantiator(self._make_data, LightningDataModule, subclasses=True)
        self.parser.add_instantiator(self._make_model, RunModule, subclasses=True)
        self.config_init = self.parser.instantiate(self._with_log_folder(self.config))
        self.datamodule = self._get(self.config_init, "data")
        self.model = self._checkpoint_module or self._get(self.config_init, "model")
        self._check_sizes()
        if self.config.subcommand == "fit":
            self.model.optimizer_records()  # refuses what cannot be made
        self.trainer = self.instantiate_trainer()

    def _make_data(self, cls: type[LightningDataModule], *args: Any, **kwargs: Any) -> LightningDataModule:
        made = self.datamodule = cls(*args, **kwargs)
        return made

    def _make_model(self, cls: type[RunModule], *args: Any, **kwargs: Any) -> RunModule:
        """Build a model; data that have no `d_in` show it by a batch."""
        if "d_in" in kwargs and kwargs["d_in"] is None and isinstance(self.datamodule, LightningDataModule):
            kwargs["d_in"] = activation_size(self.datamodule)
        return cls(*args, **kwargs)

    def _check_sizes(self) -> None:
        """Compare what the model takes from the data with what was given, and with what a checkpoint has."""
        given = self._given_sizes
        for name in _LINKED:
            actual = getattr(self.datamodule, name, None)
            if actual is None:
                continue
            if given.get(name) not in (None, actual):
                raise ValueError(
                    f"--model.{name} must be that of the data, {actual!r}, but is {given[name]!r} (leave it out: the "
                    "data tell it)"
                )
            if self._checkpoint_module is not None and name in _SIZES:
                saved = self._checkpoint_module.init_args.get(name, actual)
                if saved != actual:
                    raise ValueError(f"--ckpt_path has {name} = {saved}, but the data has {name} = {actual}")

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

    def _take_folder(self) -> None:
        """Lock the run's folder, and clear it where it is to be replaced: everything else is known to be right."""
        config = self.config[self.config.subcommand]
        if config.trainer.get("fast_dev_run") or not self._is_first_process:
            return
        run_dir = Path(config.run_dir)
        self._lock = RunLock(run_dir)
        self._lock.acquire()
        if self._new:
            self._check_folder()  # another run may have ended here meanwhile
            self._replacement = Replacement(run_dir)
            self._replacement.begin()
        try:
            self._prepare_checkpoints()
        except OSError:
            if self._replacement is not None:
                self._replacement.undo()
            raise
        remove_leftovers(run_dir)
        for name in ("figures", MEMBERS):
            remove_leftovers(run_dir / name, recursive=True)

    def _prepare_checkpoints(self) -> None:
        """See whether the run can write its checkpoints, before anything is written or deleted."""
        if self.subcommand != "fit" or self.config.fit.trainer.fast_dev_run or not self.trainer.is_global_zero:
            return
        for callback in self.trainer.checkpoint_callbacks:
            if isinstance(callback, callbacks.RunCheckpoint):
                prepare_folder(Path(callback.dirpath or Path(self.config.fit.run_dir, "checkpoints")), "checkpoints")

    def _run_subcommand(self, subcommand: str) -> None:
        """Run; where a disk, a folder or the numbers fail, end with status 1 and a message alone.

        So do data and arguments that turn out wrong before the first step of training (with status 2), in which case
        the folder is left as it was; what goes wrong later is shown with its traceback.
        """
        try:
            super()._run_subcommand(subcommand)
        except (OSError, NonfiniteError, ValueError, TypeError, MisconfigurationException) as error:
            expected = isinstance(error, (OSError, NonfiniteError))
            if os.environ.get("SAE_LIGHTNING_TRACEBACK") or (self._beginning.begun and not expected):
                raise
            fail(str(error), 1 if expected else 2)
        finally:
            if self._replacement is not None and not self._beginning.begun:
                self._replacement.undo()

    def _begun(self) -> None:
        if self._replacement is not None:
            self._replacement.commit()

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
        callbacks_ = [c for c in callbacks_ if not isinstance(c, RunCallback) or isinstance(self.model, c.serves)]
        off: tuple[type[Callback], ...] = ()
        if config.get("enable_model_summary") is None:  # Lightning's has a row for our metrics, and columns of zeros
            config["enable_model_summary"] = False
            callbacks_ = [callbacks.ModelOverview(), *callbacks_]
        if config.get("enable_progress_bar") is False or config.get("barebones"):
            off += (ProgressBar,)
        if config.get("enable_checkpointing") is False or config.get("barebones"):
            off += (ModelCheckpoint,)
        kept = [callback for callback in callbacks_ if not isinstance(callback, off)]
        command = self.config[self.config.subcommand]
        run_dir, plain = Path(command.run_dir), self._plain(command)
        if not config.get("fast_dev_run"):  # which writes nothing
            kept.append(RunFolder(run_dir))
        for callback in kept:  # Lightning would put checkpoints into the folder of the first logger
            if isinstance(callback, callbacks.RunCheckpoint) and callback.dirpath is None:
                callback.dirpath = str(run_dir / "checkpoints")
        if self.config.subcommand == "fit":
            kept.append(DataRecord(self._data))
            kept.append(self._beginning)
        if not config.get("barebones"):
            kept.append(callbacks.ResultsWriter(plain))
            name = "config.yaml" if self.config.subcommand == "fit" else f"config-{self.config.subcommand}.yaml"
            kept.append(_ConfigWriter(plain, run_dir / name))
        if self.config.subcommand == "fit" and not config.get("fast_dev_run"):
            kept.append(_NextCommand(run_dir))
        given = config.get("callbacks") or []
        config["callbacks"] = []
        return super()._instantiate_trainer(config, in_order([*(given if isinstance(given, list) else [given]), *kept]))


def run(args: list[str]) -> None:
    """Run fit, validate, test or predict.

    Args:
        args: The command and its arguments.
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
    # curves are logged every `log_every_n_steps` steps, whatever the length of an epoch
    warnings.filterwarnings("ignore", message=r".*smaller than the logging interval.*")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_is_no_advert)
    # what it would take instead, sys.argv, is a notebook's or a test's own command line, or the same in another order
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter is intended.*")
    SAEParser.command = args[0]
    SAECLI([args[0], *_with_save_dir(configs_first(args[1:]))])


def _is_no_advert(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning's is about the run, not about other products."""
    return "Tip: For seamless cloud" not in record.getMessage()


def _with_save_dir(args: list[str]) -> list[str]:
    """Let a logger of Lightning's that needs a folder have the run's (`.` stands for it, as in a config)."""
    names = [name for option, name in itertools.pairwise(args) if option == "--trainer.logger"]
    names += [arg.partition("=")[2] for arg in args if arg.startswith("--trainer.logger=")]
    logger = getattr(loggers, short_name(names[-1]) if names else "", None)
    if logger is None or any(arg.startswith("--trainer.logger.save_dir") for arg in args):
        return args
    parameter = inspect.signature(logger).parameters.get("save_dir")
    needed = parameter is not None and parameter.default is inspect.Parameter.empty
    return [*args, "--trainer.logger.save_dir", "."] if needed else args
