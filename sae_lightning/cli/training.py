"""Runs the commands that train and test, without the words of Lightning that do not apply."""

import inspect
import itertools
import logging
import warnings

from lightning.pytorch import loggers

from sae_lightning.cli.config_files import configs_first
from sae_lightning.cli.lightning_cli import SAECLI
from sae_lightning.cli.parser import SAEParser
from sae_lightning.cli.resume import short_name


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
    for name in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{name}").addFilter(_is_no_advert)
    # what it would take instead, sys.argv, is a notebook's or a test's own command line, or the same in another order
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter is intended.*")
    SAEParser.command = args[0]
    SAECLI([args[0], *_with_save_dir(configs_first(args[1:]))])


def _is_no_advert(record: logging.LogRecord) -> bool:
    """Whether a message of Lightning is about the run, not about other products or a default without effect."""
    message = record.getMessage()  # checkpoints are read with weights_only=True, whatever Lightning says
    return "Tip: For seamless cloud" not in message and "`weights_only` was not set" not in message


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
