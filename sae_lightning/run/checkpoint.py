"""Read untrusted checkpoints: nothing in them is executed or imported, and their content is checked."""

import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

CHECKPOINT_KEY = "sae_lightning"
"""Key of the class path, constructor arguments and number of samples seen in a checkpoint."""


_LIGHTNING = {  # entries that Lightning reads without checking their types
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
    "callbacks": dict,
    "loops": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
}


def read_checkpoint(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of this project with `weights_only=True`, and check it.

    The checks cover the checksums of all parts of the file, the types of the entries that readers rely on, and that
    weights are finite. `load_module` checks the class that the checkpoint names.

    Args:
        path: A checkpoint, written by the command line or a Trainer in Python.
        map_location: Device to load to.

    Returns:
        The content of the checkpoint.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is truncated, damaged, unsafe to load, not finite, or was not made by sae_lightning.
    """
    name = repr(os.fspath(path))
    try:
        _check_zip(path)
        checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except FileNotFoundError:
        raise
    except pickle.UnpicklingError as error:  # torch's message advises to load it regardless
        named = re.search(r"GLOBAL (\S+)", str(error))
        what = f" ({named[1]})" if named else ""
        raise ValueError(
            f"checkpoint {name} cannot be read: it holds more than tensors and plain values{what}"
        ) from None
    except Exception as error:  # damaged files raise many types of errors
        raise ValueError(f"checkpoint {name} cannot be read (truncated or damaged?): {error}") from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint:
        raise ValueError(f"checkpoint {name} was not made by sae_lightning")
    try:
        _check_content(checkpoint)
    except Exception as error:  # some kinds of tensors do not support the checks
        raise ValueError(f"checkpoint {name} is damaged: {error}") from error
    return checkpoint


def _check_zip(path: str | os.PathLike[str]) -> None:
    """Check that a file is an uncompressed zip file, torch's format, with valid checksums, which torch ignores."""
    with open(path, "rb") as file:  # torch looks at the first bytes, zipfile at the end of the file: check both
        if file.read(4) != b"PK\3\4" or not zipfile.is_zipfile(file):
            raise ValueError("it is not a zip file")
    with zipfile.ZipFile(path) as file:
        for part in file.infolist():
            if part.compress_type != zipfile.ZIP_STORED:  # never written by torch, and could expand to any size
                raise ValueError(f"{part.filename!r} in it is compressed")
        damaged = file.testzip()
    if damaged is not None:
        raise ValueError(f"{damaged!r} in it has another checksum than when it was written")


def _check_content(checkpoint: dict[str, Any]) -> None:
    saved = checkpoint[CHECKPOINT_KEY]
    kinds = {"class_path": str, "init_args": dict, "samples_seen": int}
    if not isinstance(saved, dict):
        raise ValueError(f"{CHECKPOINT_KEY!r} must be a dict, but is of type {type(saved).__name__}")
    for holder, key, kind in (*((saved, key, kind) for key, kind in kinds.items()), (checkpoint, "state_dict", dict)):
        value = holder.get(key)
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{key!r} must be of type {kind.__name__}, but is of type {type(value).__name__}")
        if isinstance(value, int) and not 0 <= value < 2**63:
            raise ValueError(f"{key!r} must be at least 0 and below 2**63, but is {value}")
    for key, kind in _LIGHTNING.items():
        if key in checkpoint and not isinstance(checkpoint[key], kind):
            raise ValueError(
                f"{key!r} must be of type {kind.__name__}, but is of type {type(checkpoint[key]).__name__}"
            )
    for i, state in enumerate(checkpoint.get("optimizer_states", [])):
        for name, value in _tensors(state, f"optimizer_states[{i}]"):
            _check_tensor(name, value)
    for key, value in checkpoint["state_dict"].items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ValueError(f"'state_dict' must hold tensors by name, but {key!r} is of type {type(value).__name__}")
        _check_tensor(key, value)


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors in nested dicts, with their place."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _tensors(item, f"{name}[{key!r}]")


def _check_tensor(name: str, value: Tensor) -> None:
    # a forged tensor with a huge shape and little storage would exhaust the memory when it is copied
    if value.layout != torch.strided or value.untyped_storage().nbytes() < value.numel() * value.element_size():
        raise ValueError(f"{name!r} must be a dense tensor that holds all its values")
    if value.is_floating_point() and not bool(value.isfinite().all()):
        bad = int((~value.isfinite()).sum())
        raise ValueError(f"{name!r} must be finite, but {bad} of its {value.numel()} values are not")
