"""`sae-lightning diagnose`: what the data let each architecture see, before anything is trained."""

import inspect
import json
import os
import shutil
import time
from argparse import SUPPRESS
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from sae_lightning import callbacks
from sae_lightning.cli.config_files import configs_first
from sae_lightning.cli.parser import CommandParser, fail, innermost
from sae_lightning.data.collecting import first_samples, random_samples
from sae_lightning.data.datamodule import ActivationDataModule
from sae_lightning.data.tensor import TensorDataModule
from sae_lightning.geometry import Architecture, Diagnosis, diagnose
from sae_lightning.modules import JumpReLUSAE, ReLUSAE, SpaDE, TopKSAE
from sae_lightning.modules.member import Member
from sae_lightning.modules.module import SAEModule
from sae_lightning.nn.parts import require_positive
from sae_lightning.plotting import concept_bounds, concept_dimensions, save_png
from sae_lightning.report import Figure, diagnosis_text, read_figures, render_diagnosis
from sae_lightning.run.files import PROBE, WriteError, prepare_folder, replacing, temporary_of

PRESETS: tuple[type[JumpReLUSAE | ReLUSAE | TopKSAE | SpaDE], ...] = (JumpReLUSAE, ReLUSAE, TopKSAE, SpaDE)
"""What is compared where no model is given; of equally good ones the first is recommended. JumpReLU comes before ReLU,
with the same receptive fields, since its penalty counts codes and does not shrink them."""

# what configs of `fit` say besides data and model; a test compares this with its parser
FIT_KEYS = (
    *("trainer", "run_dir", "allow_changed_data", "ckpt_path", "weights_only", "trust"),
    *(default.key for default in callbacks.DEFAULT if inspect.signature(default).parameters),
)
_RESULT = "diagnosis.json"
_FIRST_FILES = (PROBE, "figures/bounds.png", "figures/dimension.png", "diagnosis.html", _RESULT)  # up to it
_WIDTH = 64  # of presets, whose receptive fields do not depend on it


def diagnose_data(
    data: ActivationDataModule,
    model: SAEModule | None = None,
    output: str | None = None,
    split: Literal["val", "test"] = "val",
    max_samples: int = 100_000,
    n_clusters: int = 10,
    found_above: float = 0.9,
    n_resamples: int = 200,
    confidence: float = 0.95,
    seed: int = 0,
    num_threads: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Say which concepts each SAE architecture could find in data, and which to train, without training one.

    Bounds are fitted to training samples and reported on held-out ones; dimensions are those of the training samples.
    Writes diagnosis.json, diagnosis.html, figures and TensorBoard events, and prints the tables.

    Args:
        data: Any data of `fit`.
        model: SAE or Comparison whose architectures are compared. Default: the four presets.
        output: Folder of the results. Default: runs/<time>-diagnose.
        split: Split on which bounds are reported; test is best left for trained SAEs.
        max_samples: Most training samples; of the held-out split a quarter of that, at random.
        n_clusters: Clusters that take the place of concepts where no sample has a label.
        found_above: Best F1 from which a concept counts as found, between 0 and 1.
        n_resamples: Resamples for the intervals of bounds.
        confidence: Coverage of all intervals, between 0 and 1.
        seed: Seed of what the diagnosis itself draws.
        num_threads: CPU threads; where other programs keep the cores busy, 1 is fastest. Default: torch's choice.
        overwrite: Whether an earlier diagnosis in `output` is deleted first.

    Returns:
        Folder of the results.

    Raises:
        ValueError: If an argument does not fit.
    """
    if max_samples < 4:
        raise ValueError(f"max_samples must be at least 4, but is {max_samples}")
    if num_threads is not None:
        require_positive("num_threads", num_threads)
        torch.set_num_threads(num_threads)
    folder = Path(output or f"runs/{time.strftime('%Y%m%d-%H%M%S')}-diagnose")
    check_output(folder, overwrite)
    begin = time.monotonic()
    data.prepare_data()
    data.setup("fit" if split == "val" else None)
    if isinstance(data, TensorDataModule):  # arrays may be smaller than a batch, which training would refuse
        data.batch_size = min(data.batch_size, len(data.split("train")))
    train = first_samples(data.train_dataloader(), max_samples)
    loader = data.val_dataloader() if split == "val" else data.test_dataloader()
    held_out = random_samples(loader, max_samples // 4, seed)
    found = diagnose(
        train.activations.flatten(1),
        train.concepts,
        data.concept_names,
        (held_out.activations.flatten(1), held_out.concepts),
        architectures_of(model, data.d_in),
        n_clusters=n_clusters,
        found_above=found_above,
        n_resamples=n_resamples,
        confidence=confidence,
        seed=seed,
    )
    facts = {
        "Data": type(data).__name__,
        "Activations": f"{data.d_in} features",
        "Fitted to": f"{len(train.activations):,} training samples",
        "Reported on": f"{len(held_out.activations):,} samples of {split}",
        "Seed": str(seed),
        "Took": f"{time.monotonic() - begin:.0f} s",
        "Date": time.strftime("%Y-%m-%d %H:%M"),
    }
    _write(claimed(folder, overwrite), found, facts)
    print(diagnosis_text(found))
    print(f"\nPage:        {folder / 'diagnosis.html'} (all numbers: {folder / _RESULT})")
    print(f"TensorBoard: tensorboard --logdir {folder}")
    return folder


def architectures_of(model: SAEModule | None, d_in: int) -> list[Architecture]:
    """The architectures of a model's SAEs, or the presets; SAEs that differ in numbers only are one.

    Args:
        model: One SAE, or a Comparison of several; None for the presets.
        d_in: Size of an activation, for the presets.
    """
    saes: Mapping[str, Member]
    saes = {cls.__name__: cls(d_in, _WIDTH) for cls in PRESETS} if model is None else model.saes()
    kinds: dict[tuple[Any, ...], list[str]] = {}
    for name, sae in saes.items():
        l0 = sae.sae.projection.at_most()
        kinds.setdefault((type(sae), sae.sae.receptive_field(), l0 is not None), []).append(name)
    classes = [kind[0] for kind in kinds]
    found = []
    for (cls, field, fixed), names in kinds.items():
        name = cls.__name__ if classes.count(cls) == 1 else f"{cls.__name__} ({names[0]})"
        l0s = [saes[member].sae.projection.at_most() for member in names]
        found.append((_order(cls), Architecture(name, field, l0s[0] if fixed else None)))
    return [architecture for _, architecture in sorted(found, key=lambda pair: pair[0])]


def _order(cls: type[Member]) -> int:
    """Place of a class among the presets; behind them for all others."""
    return PRESETS.index(cls) if cls in PRESETS else len(PRESETS)


def check_output(folder: Path, overwrite: bool) -> None:
    """Make sure that a folder is new, or an earlier diagnosis that may be deleted, and that it can be written.

    Args:
        folder: The folder.
        overwrite: Whether an earlier diagnosis, complete or cut off by a kill, is deleted.

    Raises:
        ValueError: If the folder holds something else, or may not be deleted.
        WriteError: If it cannot be written.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output must be a folder, but {str(folder)!r} is a file")
    if any(path.is_file() for path in folder.rglob("*")):
        if not overwrite:
            raise ValueError(
                f"output {str(folder)!r} exists already: choose another, or replace it with --overwrite true"
            )
        first = {path for name in _FIRST_FILES for path in (folder / name, temporary_of(folder / name))}
        others = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("events.out.tfevents.")]
        if not (folder / _RESULT).is_file() and not first.issuperset(others):
            raise ValueError(f"output {str(folder)!r} holds no diagnosis (no {_RESULT}), so it is not deleted")
    prepare_folder(folder, "the diagnosis")


def claimed(folder: Path, overwrite: bool) -> Path:
    """An empty folder for a diagnosis, in place of an earlier one; what `check_output` refuses is refused."""
    check_output(folder, overwrite)
    shutil.rmtree(folder)
    folder.mkdir(parents=True)
    return folder


def _write(folder: Path, found: Diagnosis, facts: dict[str, str]) -> None:
    from torch.utils.tensorboard import SummaryWriter

    figures = draw(found)
    with SummaryWriter(str(folder)) as events:
        for name, figure in figures.items():
            save_png(figure, folder / "figures" / f"{name}.png")
            events.add_figure(name, figure)
    images = [Figure(caption, uri) for caption, uri in read_figures({"": folder / "figures"}, float("inf"))]
    with replacing(folder / "diagnosis.html", "w", encoding="utf-8") as file:
        file.write(render_diagnosis(found, f"Diagnosis of {facts['Data']}", list(facts.items()), images))
    with replacing(folder / _RESULT, "w", encoding="utf-8") as file:
        json.dump({"facts": facts, **found.plain()}, file, indent=1, allow_nan=False)


def draw(found: Diagnosis) -> dict[str, Any]:
    """The figures of a diagnosis by name."""
    names = [concept.name for concept in found.concepts]
    whose = "cluster" if found.clustered else "concept"

    def stacked(rows: Sequence[Sequence[float]]) -> torch.Tensor:
        return torch.tensor([list(row) for row in rows], dtype=torch.float64)

    counted = {
        "participation ratio": [c.dimension.participation_ratio for c in found.concepts],
        "90 % of the energy": [c.dimension.components_90 for c in found.concepts],
        "99 % of the energy": [c.dimension.components_99 for c in found.concepts],
        "two nearest neighbors": [c.dimension.two_nn for c in found.concepts],
    }
    title = f"Dimension of each {whose}"
    figures = {"dimension": concept_dimensions({n: stacked(rows) for n, rows in counted.items()}, names, title)}
    families = list(found.concepts[0].bounds)
    if families:
        values = {family: stacked([c.bounds[family] for c in found.concepts]) for family in families}
        title = f"Best F1 that a single latent could reach, per {whose}"
        figures["bounds"] = concept_bounds(values, names, found.found_above, title)
    return figures


def make_parser() -> CommandParser:
    """The command's own arguments, and what configs of `fit` say besides, which has no effect here."""
    parser = CommandParser(command="diagnose", description=(diagnose_data.__doc__ or "").partition("\n\n")[0])
    parser.add_argument(
        "-c", "--config", action="config", help="YAML file with the arguments, such as a config of fit."
    )
    parser.add_argument(
        "--seed_everything",
        type=bool | int,
        default=0,
        help="The program's seed, for data without a seed of their own.",
    )
    parser.add_function_arguments(diagnose_data, fail_untyped=False)
    for name in ("d_in", "d_out", "input_layers"):
        parser.link_arguments(f"data.{name}", f"model.init_args.{name}", apply_on="instantiate")
    for key in FIT_KEYS:
        parser.add_argument(f"--{key}", type=Any, default=None, help=SUPPRESS)
    return parser


def main(args: list[str]) -> None:
    """Parse the arguments and diagnose; a wrong argument ends with its message alone."""
    parser = make_parser()
    config = parser.parse_args(configs_first(args))
    for key in ("config", *FIT_KEYS):
        config.pop(key)
    arguments = parser.dump(config, skip_none=False)
    seed = config.pop("seed_everything")
    torch.manual_seed(0 if isinstance(seed, bool) else seed)
    try:
        folder = diagnose_data(**parser.instantiate(config))
        with replacing(folder / "config.yaml", "w", encoding="utf-8") as file:
            file.write(arguments)
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("SAE_LIGHTNING_TRACEBACK"):
            raise
        fail(innermost(error), status=1 if isinstance(error, WriteError) else 2)
