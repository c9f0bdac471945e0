"""Load trained models from checkpoints, without executing code from them."""

import importlib
import os
from collections.abc import Sequence
from typing import Any

import torch

from sae_lightning.modules.base import BaseSAE
from sae_lightning.modules.comparison import Comparison
from sae_lightning.modules.run import RunModule
from sae_lightning.nn.parts import build
from sae_lightning.run.checkpoint import CHECKPOINT_KEY, read_checkpoint


def trust_modules(names: Sequence[str]) -> None:
    """Import modules whose classes a checkpoint may name; importing runs their code.

    Args:
        names: Import paths of modules that the user trusts.

    Raises:
        ValueError: If a module cannot be imported.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a module may raise anything
            raise ValueError(f"trust must name modules that can be imported, but {name!r} cannot: {error!r}") from error


def load_module(path: str | os.PathLike[str], map_location: Any = "cpu", trust: Sequence[str] = ()) -> RunModule:
    """Load a trained model (SAE, Comparison, LanguageModel) in evaluation mode and without gradients.

    Args:
        path: A checkpoint, made by the command line or by a Trainer in Python.
        map_location: Device to load to.
        trust: Modules to import whose classes the checkpoint may name, beside those of this package and of what has
            been imported already.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, no checkpoint of this project, or names a class that is not known.
    """
    trust_modules(trust)
    return module_of(read_checkpoint(path, map_location), path).to(map_location).eval().requires_grad_(False)


def module_of(checkpoint: dict[str, Any], path: str | os.PathLike[str]) -> RunModule:
    """Build the model of a checkpoint that `read_checkpoint` has read, with its weights.

    Args:
        checkpoint: Its content.
        path: Its file, for the message.

    Raises:
        ValueError: If it cannot be built as described, or its weights are not what that has.
    """
    saved = checkpoint[CHECKPOINT_KEY]
    description = {key: saved[key] for key in ("class_path", "init_args")}
    try:
        _check_sizes(description, checkpoint["state_dict"])
        module = build(description, RunModule)
        module.load_state_dict(checkpoint["state_dict"])
    except Exception as error:  # constructors meet arguments of other types with errors of many kinds
        raise ValueError(f"checkpoint {os.fspath(path)!r} cannot be loaded: {error}") from error
    module.samples_seen = saved["samples_seen"]
    return module


def _check_sizes(description: dict[str, Any], weights: dict[str, Any]) -> None:
    """Raise a ValueError if weights have other shapes than described, before memory is allocated for these."""
    try:
        with torch.device("meta"):
            expected = build(description, RunModule).state_dict()
    except RuntimeError:  # a user's constructor may look at values, which tensors on this device do not have
        if _is_own(description):
            raise
        return
    for name in expected.keys() ^ weights.keys():
        raise ValueError(f"weights {name!r} are {'missing' if name in expected else 'unknown'}")
    for name, value in expected.items():
        if value.shape != weights[name].shape:
            raise ValueError(
                f"weights {name!r} must have shape {tuple(value.shape)}, but have {tuple(weights[name].shape)}"
            )


def _is_own(value: Any) -> bool:
    """Whether all classes that a description names are this package's."""
    if isinstance(value, dict):
        return str(value.get("class_path", "sae_lightning.")).startswith("sae_lightning.") and all(
            map(_is_own, value.values())
        )
    return True


def load_sae(
    path: str | os.PathLike[str], member: str | None = None, map_location: Any = "cpu", trust: Sequence[str] = ()
) -> BaseSAE:
    """Load one trained SAE in evaluation mode and without gradients: it takes raw activations.

    To train it further, call `requires_grad_(True)` on it.

    Args:
        path: A checkpoint, made by the command line or by a Trainer in Python.
        member: Which SAE of a Comparison's checkpoint.
        map_location: Device to load to.
        trust: Modules to import whose classes the checkpoint may name, beside those of this package and of what has
            been imported already.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is damaged, no checkpoint of this project, or names a class that is not known; or if `member`
            does not name an SAE in it.
    """
    module = load_module(path, map_location, trust)
    if isinstance(module, BaseSAE):
        if member is not None:
            raise ValueError(f"member must be None for a checkpoint of one {type(module).__name__}, but is {member!r}")
        return module
    if not isinstance(module, Comparison):
        raise ValueError(
            f"checkpoint {os.fspath(path)!r} must be one of an SAE, but is one of a {type(module).__name__}"
        )
    if member not in module.saes():
        raise ValueError(f"member must be one of {sorted(module.saes())}, but is {member!r}")
    return module.saes()[member]
