"""Load what was trained from checkpoints, without executing what is in them."""

import os
import zipfile
from typing import Any

import torch

from sae_lightning.modules.base import BaseSAE
from sae_lightning.modules.comparison import Comparison
from sae_lightning.modules.run import CHECKPOINT_KEY, RunModule
from sae_lightning.nn.parts import build


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project with `weights_only=True`, and compare the checksums of all that it holds.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, damaged, unsafe to load, or was not made by sae_lightning.
    """
    try:
        _compare_checksums(path)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:  # the unpickler meets damage with errors of many kinds
        raise ValueError(f"checkpoint {os.fspath(path)!r} cannot be read (truncated or damaged?): {error}") from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        raise ValueError(f"checkpoint {os.fspath(path)!r} was not made by sae_lightning")
    return checkpoint


def _compare_checksums(path: str | os.PathLike[str]) -> None:
    """Raise a ValueError where a part of a zip file, torch's format, is not what was written: torch does not look."""
    if not zipfile.is_zipfile(path):  # torch has its own word for what is cut off, or no checkpoint at all
        return
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged!r} in it has another checksum than when it was written")


def load_module(path: str | os.PathLike[str], map_location: Any = "cpu") -> RunModule:
    """Load what a run trained, an SAE, a Comparison or a LanguageModel, in evaluation mode.

    Args:
        path: A checkpoint, made by the command line or by a Trainer in Python.
        map_location: Device to load to.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint of this project.
    """
    checkpoint = read_checkpoint(path, map_location)
    saved = checkpoint[CHECKPOINT_KEY]
    module = build({key: saved[key] for key in ("class_path", "init_args")}, RunModule)
    module.load_state_dict(checkpoint["state_dict"])
    module.samples_seen = saved["samples_seen"]
    return module.to(map_location).eval()


def load_sae(path: str | os.PathLike[str], member: str | None = None, map_location: Any = "cpu") -> BaseSAE:
    """Load one trained SAE in evaluation mode: it takes raw activations.

    Args:
        path: A checkpoint, made by the command line or by a Trainer in Python.
        member: Which SAE of a Comparison's checkpoint.
        map_location: Device to load to.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint of this project, or `member` does not name an SAE in it.
    """
    module = load_module(path, map_location)
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
