"""What a resumed run takes from its checkpoint, and what it must have in common with the run that it continues."""

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from jsonargparse import ArgumentParser

from sae_lightning.modules.comparison import Comparison
from sae_lightning.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from sae_lightning.modules.run import RunModule

DATA_KEY = "sae_lightning_data"
NO_SAMPLE = frozenset(
    {"num_workers", "pin_memory", "persistent_workers", "prefetch_factor", "eval_batch_size", "verify"}
)
"""Arguments of data modules that change how samples are read, but not which: a resumed run may change them."""

_MAKERS = {"optimizer": OptimizerCallable, "lr_scheduler": LRSchedulerCallable | None}


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
        """Store it with the weights; plain values load with `weights_only=True`."""
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
    """Yield a sentence for each argument that changes the samples and is not what it was.

    Args:
        saved: Description of a checkpoint's data.
        given: Description of the data now.
        name: Argument to which both belong.
    """
    if not isinstance(saved, dict) or not isinstance(given, dict):
        if saved != given:
            yield f"{name} was {saved!r} and is {given!r}"
        return
    paths = [str(description.get("class_path", "")) for description in (saved, given)]
    if len({(path.partition(".")[0], short_name(path)) for path in paths}) > 1:  # their arguments cannot be compared
        yield f"{name} was {paths[0]} and is {paths[1]}"
        return
    for key in sorted((saved.keys() | given.keys()) - NO_SAMPLE - {"class_path"}, key=str):
        path = name if key == "init_args" else f"{name}.{key}"
        if saved.get(key) is None and given.get(key) is None:  # such as an argument that came with a later version
            continue
        if key in saved and key in given:
            yield from data_changes(saved[key], given[key], path)
        elif key in saved:
            yield f"{path} was {saved[key]!r} and is not given"
        else:
            yield f"{path} was not given and is {given[key]!r}"


def model_changes(given: Any, saved: Any, name: str = "model") -> Iterator[str]:
    """Yield a sentence for each plain value that differs between what the user gave and the checkpoint.

    Args:
        given: The model of the user's configuration, in plain values.
        saved: The checkpoint's description of its model.
        name: Argument to which both belong.
    """
    if isinstance(given, dict) and isinstance(saved, dict):
        for key in sorted(given.keys() & saved.keys()):
            if key == "class_path":
                if short_name(given[key]) != short_name(saved[key]):
                    yield f"{name}: {saved[key]} (given: {given[key]})"
            else:
                yield from model_changes(given[key], saved[key], name if key == "init_args" else f"{name}.{key}")
    elif given != saved:
        yield f"{name}: {saved} (given: {given})"


def merged(given: Any, saved: Any) -> Any:
    """What was saved, with what was given where nothing was saved (optimizers and schedules), in plain values."""
    if isinstance(given, dict) and isinstance(saved, dict):
        return {**given, **{key: merged(given.get(key), value) for key, value in saved.items()}}
    return saved


def short_name(class_path: str) -> str:
    """A class's name without its module."""
    return class_path.rpartition(".")[2]


def take_optimizers(module: RunModule, given: Any) -> None:
    """Let a module that was built as its checkpoint says be trained as the user's configuration says.

    Args:
        module: The module.
        given: The model of the user's configuration, as parsed; None takes the module's defaults.
    """
    init_args = getattr(given, "init_args", None)
    if init_args is None:
        return
    if isinstance(module, Comparison):
        members = init_args.get("members") or {}
        for name, sae in module.saes().items():
            take_optimizers(sae, members.get(name))
        return
    parser = ArgumentParser(exit_on_error=False)
    chosen = {}
    for name, kind in _MAKERS.items():
        if name in init_args:
            parser.add_argument(f"--{name}", type=kind, default=None)
            chosen[name] = init_args[name]
    if chosen:
        module.train_with(**parser.instantiate(parser.parse_object(chosen)).as_dict())
