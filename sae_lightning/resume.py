"""What a resumed run must have in common with the run that it continues: its data."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl

DATA_KEY = "sae_lightning_data"


class DataRecord(pl.Callback):
    """Stores in every checkpoint on which data the run is trained.

    Args:
        data: Class path and constructor arguments of the data module, in plain values.
    """

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Store beside the weights; plain values load with `weights_only=True`."""
        checkpoint[DATA_KEY] = self.data


def describe_data(data: dict[str, Any], seed: int) -> dict[str, Any]:
    """Class path and arguments of a data module, with the seed that it will use.

    Args:
        data: What the command line was given, in plain values.
        seed: The program's seed, which data without a seed of their own take.
    """
    init_args = dict(data.get("init_args") or {})
    if init_args.get("seed") is None:
        init_args["seed"] = seed
    return {"class_path": data["class_path"], "init_args": init_args}


def data_changes(saved: Any, given: Any, name: str = "data") -> Iterator[str]:
    """Yield a sentence for each argument that is not what it was.

    Args:
        saved: Description of a checkpoint's data.
        given: Description of the data now.
        name: Argument to which both belong.
    """
    if not isinstance(saved, dict) or not isinstance(given, dict):
        if saved != given:
            yield f"{name} was {saved!r} and is {given!r}"
        return
    for key in sorted(saved.keys() | given.keys()):
        path = name if key == "init_args" else f"{name}.{key}"
        if key in saved and key in given:
            yield from data_changes(saved[key], given[key], path)
        elif key in saved:
            yield f"{path} was {saved[key]!r} and is not given"
        else:
            yield f"{path} was not given and is {given[key]!r}"
