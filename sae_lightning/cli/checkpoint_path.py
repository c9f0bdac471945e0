"""Reads the model of `--ckpt_path`, which overrides the command line."""

from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from sae_lightning.callbacks.checkpoint_files import described, instead_of, read_older
from sae_lightning.cli.parser import fail
from sae_lightning.cli.resume import DATA_KEY, merged, model_changes, short_name, take_optimizers
from sae_lightning.modules.loading import module_of, trust_modules
from sae_lightning.modules.run import RunModule
from sae_lightning.moved import current
from sae_lightning.run.checkpoint import CHECKPOINT_KEY, read_checkpoint

SIZES = ("d_in", "d_out", "input_layers", "image_size", "channels")
"""Arguments of models that come from the data, and that a checkpoint and its data must share."""
LINKED = (*SIZES, "grammar_text")
"""All arguments of models that come from the data."""


class GivenCheckpoint(NamedTuple):
    """The checkpoint of `--ckpt_path`."""

    module: RunModule
    """The model with its weights, trained from here on as the command line says."""
    model: dict[str, Any]
    """How it is built and trained, in plain values."""
    data: dict[str, Any] | None
    """On which data it was trained; None where it does not say."""
    step: int

    def require_size(self, name: str, actual: Any) -> None:
        """Raise a ValueError unless the data have the size with which the model was built."""
        saved = self.module.init_args.get(name, actual)
        if name in SIZES and saved != actual:
            raise ValueError(f"--ckpt_path has {name} = {saved}, but the data has {name} = {actual}")


def read_given(command: str, given: Any, model: dict[str, Any] | None) -> GivenCheckpoint:
    """Read the checkpoint of `--ckpt_path`; errors end the program with a message.

    Args:
        command: The command.
        given: Its arguments, as parsed; `ckpt_path` becomes that of an older checkpoint where one is damaged.
        model: The model among them, in plain values; None where there is none.
    """
    try:
        trust_modules(given.trust)
    except ValueError as error:
        fail(f"--{error}")
    checkpoint = _read(command, given)
    saved = current(checkpoint[CHECKPOINT_KEY])
    init_args = {key: value for key, value in saved["init_args"].items() if key not in LINKED}
    if model is not None:
        _compare(model, saved["class_path"], init_args)
    try:  # nothing in it reaches the parser, which would import whatever class it names
        module = module_of(checkpoint, given.ckpt_path)
    except ValueError as error:
        fail(f"--ckpt_path: {error}")
    take_optimizers(module, given.model)
    known = merged((model or {}).get("init_args", {}), init_args)
    description = {"class_path": saved["class_path"], "init_args": known}
    return GivenCheckpoint(module, description, checkpoint.get(DATA_KEY), checkpoint.get("global_step", 0))


def _compare(model: dict[str, Any], class_path: str, init_args: dict[str, Any]) -> None:
    """Refuse a checkpoint of another class than --model, and warn of arguments that it replaces."""
    if short_name(model["class_path"]) != short_name(class_path):
        fail(
            f"--ckpt_path is a checkpoint of {class_path}, but --model is {model['class_path']}: "
            f"use the config of its run, or leave --model out"
        )
    changed = list(model_changes(model.get("init_args", {}), init_args))
    if changed:
        rank_zero_warn("the checkpoint's hyperparameters replace what was given: " + "; ".join(changed))


def _read(command: str, given: Any) -> dict[str, Any]:
    """The checkpoint's content; training resumes from an older checkpoint of the run where it is damaged."""
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
    rank_zero_warn(f"{described(path)} is damaged, so training resumes from {described(found[0])}: {problem}")
    return checkpoint
