"""`sae-lightning harvest`: write a model's activations to a cache."""

import os
from pathlib import Path
from typing import Any, Literal

from sae_lightning.cli.config_files import configs_first
from sae_lightning.cli.parser import CommandParser, fail, innermost
from sae_lightning.data.activations.cache import delete_cache
from sae_lightning.data.activations.harvest import Harvest
from sae_lightning.data.activations.hosts import Host
from sae_lightning.data.activations.reading import WindowReader
from sae_lightning.data.sources import Source, StreamedSource
from sae_lightning.run.files import WriteError


# of Host[Any], jsonargparse would not find the classes that derive from it
def harvest(
    host: Host,  # type: ignore[type-arg]
    source: Source | StreamedSource,  # type: ignore[type-arg]
    layers: list[str],
    output: str,
    window_size: int = 1024,
    batch_size: int | None = None,
    dtype: Literal["float32", "float16", "bfloat16"] = "float32",
    keep: list[str] | None = None,
    max_samples: int | None = None,
    unreadable: Literal["refuse", "skip"] = "refuse",
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    devices: list[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a model's activations to a cache, which any number of trainings read.

    An interrupted harvest resumes when it is started again, and ends with the same files. Files that exist already are
    compared with their checksums first.

    Args:
        host: Model whose activations are read: TextHost, ImageHost, ModuleHost, or the import path of your own.
        source: What it reads: TaggedCorpus, ConlluFiles, TextFiles, IdxImages, ImageFolder, ... or your own.
        layers: Names of the layers, as in `named_modules`; they are read in one forward pass that ends there.
        output: Folder of the cache.
        window_size: Examples (texts or images) of a shard, whose activations are mixed.
        batch_size: Most tokens (filling included) or images in a forward pass. Default: 8192 tokens or 64 images.
        dtype: Type in which activations are stored.
        keep: Names of the concepts whose activations are wanted, such as those of content words. Default: all.
        max_samples: Stop with the shard that brings the activations, of all splits together, to this number.
        unreadable: Whether examples that cannot be read end the harvest (refuse) or are skipped and counted (skip).
        val_fraction: Share of the documents for validation; all examples of a document fall into one split.
        test_fraction: Share of the documents for test.
        seed: Seed of the order of the examples, the splits and the mixing.
        devices: Devices that share the work, such as [cuda:0, cuda:1]. Default: the first GPU, or the CPU.
        overwrite: Whether an earlier cache in `output` is deleted first; other files there are never deleted.

    Raises:
        ValueError: If an argument does not fit, or a file of the cache is damaged.
    """
    reader = WindowReader(
        host, source, layers, window_size, batch_size, dtype, keep, unreadable, val_fraction, test_fraction, seed
    )
    folder = Path(output)
    if overwrite and folder.exists():
        delete_cache(folder)
    print(summary(output, Harvest(reader, folder, max_samples, devices).run()))


def summary(output: str, manifest: dict[str, Any]) -> str:
    """What a cache holds, and what was left out, for a person."""
    samples = ", ".join(f"{n:,} for {split}" for split, n in manifest["samples"].items())
    lines = [
        f"{output}: {sum(manifest['samples'].values()):,} activations of {manifest['examples']:,} examples ({samples})"
    ]
    lines += [f"layer {name}: {layer['d_in']} features" for name, layer in manifest["layers"].items()]
    if manifest["skipped"]:
        named = ", ".join(manifest["skipped"][:5]) + (", ..." if len(manifest["skipped"]) > 5 else "")
        lines.append(f"skipped, since they cannot be read: {len(manifest['skipped']):,} examples ({named})")
    if manifest["unaligned_words"]:
        lines.append(f"left out, since no token stands for them: {manifest['unaligned_words']:,} labeled words")
    return "\n".join(lines)


def main(args: list[str]) -> None:
    """Parse the arguments and harvest; a wrong argument ends with its message alone."""
    parser = CommandParser(command="harvest", description=(harvest.__doc__ or "").partition("\n\n")[0])
    parser.add_argument("-c", "--config", action="config", help="YAML file with the arguments.")
    parser.add_function_arguments(harvest)
    config = parser.parse_args(configs_first(args))
    config.pop("config")
    try:
        harvest(**parser.instantiate(config))
    except (ValueError, TypeError, OSError) as error:
        if os.environ.get("SAE_LIGHTNING_TRACEBACK"):
            raise
        fail(innermost(error), status=1 if isinstance(error, WriteError) else 2)
