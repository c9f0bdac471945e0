"""Read and check the manifest of a cache, and the records of its shards, which the manifest summarizes."""

import json
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_lightning.data.activations.blocks import BLOCK, DTYPES, MAX_CHUNK_BYTES, chunk_bytes
from sae_lightning.data.activations.cache_files import (
    MANIFEST,
    RECORDS,
    chunk_file,
    damaged,
    index_file,
    place_of,
    read_file,
    record_file,
)
from sae_lightning.data.checks import digest, each, fields, finite, integer, optional, require, table, text, truth
from sae_lightning.data.datamodule import SPLIT_SEEDS, Split
from sae_lightning.run.seal import KEY, unseal_json

FORMAT = 2


def _split(value: Any, place: str) -> None:
    require(isinstance(value, str) and value in SPLIT_SEEDS, place, f"one of {list(SPLIT_SEEDS)}", value)


_CHUNK = {"file": text, "rows": each(integer(1)), "bytes": integer(1), "sha256": digest, "blocks": each(digest)}
_MANIFEST = fields(
    {
        "format": integer(FORMAT),
        "complete": truth,
        "config": fields(
            {
                "host": fields({"init_args": table(lambda *_: None), "crop": optional(finite)}, others=True),
                "source": fields({"class_path": text, "init_args": table(lambda *_: None)}, others=True),
                "layers": each(text),
                "dtype": text,
            },
            others=True,
        ),
        "concept_names": each(text),
        "examples": integer(0),
        "tokens": integer(0),
        "skipped": each(text),
        "unaligned_words": integer(0),
        "samples": table(integer(1)),
        "unlabelled": table(integer(0)),
        "concepts": table(table(integer(0))),
        "layers": table(
            fields({"d_in": integer(1), "mean": optional(each(finite)), "splits": table(each(fields(_CHUNK)))}),
        ),
        "shards": each(digest),
    }
)
_RECORD = fields(
    {
        "shard": integer(0),
        "cache": digest,
        "examples": integer(0),
        "tokens": integer(0),
        "skipped": each(text),
        "unaligned": integer(0),
        "counts": table(each(integer(0))),
        "parts": each(
            fields({"layer": text, "split": _split, "d_in": integer(1), "sum": optional(each(finite)), **_CHUNK}),
        ),
    }
)


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """Read and check the manifest of a cache.

    Args:
        folder: Folder of the cache, or its address in an object store.

    Raises:
        ValueError: If there is no manifest, or it is damaged, of another format, or not valid.
    """
    try:
        data = read_file(folder, MANIFEST)
    except FileNotFoundError:
        raise ValueError(
            f"cache must be a folder that `sae-lightning harvest` wrote, but there is no {MANIFEST} in {str(folder)!r}"
        ) from None
    try:
        manifest = unseal_json(data)
    except ValueError as error:
        raise _another_format(folder, 1) if _is_of_format_1(data) else _unreadable(folder, MANIFEST, error) from None
    if manifest.get("format") != FORMAT:
        raise _another_format(folder, manifest.get("format"))
    with _naming(folder, MANIFEST):
        check_manifest(manifest)
    return manifest


def read_record(folder: Path, shard: int, cache: str, config: dict[str, Any], n_concepts: int) -> dict[str, Any] | None:
    """Read and check the record of a shard; return None if there is none.

    Args:
        folder: The cache.
        shard: Number of the shard.
        cache: Checksum of the configuration of the cache.
        config: Configuration of the cache.
        n_concepts: Number of concepts.

    Raises:
        ValueError: If the record is damaged, belongs to another cache, or is not valid.
    """
    file = record_file(shard)
    try:
        data = read_file(folder, file)
    except FileNotFoundError:
        return None
    try:
        record = unseal_json(data)
    except ValueError as error:
        raise _unreadable(folder, file, error) from None
    with _naming(folder, file):
        check_record(record, shard, cache, config, n_concepts)
    return record


def _is_of_format_1(data: bytes) -> bool:
    """Whether a manifest has format 1, which had no checksum."""
    try:
        content = json.loads(data)
        return KEY not in content and content["format"] == 1
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _unreadable(folder: Path | str, file: str, error: ValueError) -> ValueError:
    return damaged(folder, file, f"cannot be read ({error})")


def _another_format(folder: Path | str, version: Any) -> ValueError:
    return ValueError(
        f"cache must be of format {FORMAT}, but {MANIFEST} of {str(folder)!r} is of format {reprlib.repr(version)}: "
        "harvest again, with --overwrite true"
    )


@contextmanager
def _naming(cache: Path | str, file: str) -> Iterator[None]:
    """Add the cache and the file to the message of errors."""
    try:
        yield
    except ValueError as error:
        raise damaged(cache, file, f"is not valid ({error})") from None


def check_manifest(manifest: dict[str, Any]) -> None:
    """Check that a manifest is consistent, and that a harvest could have written it.

    Raises:
        ValueError: If not; the message names the place.
    """
    _MANIFEST(manifest, "")
    config, names, samples = manifest["config"], manifest["concept_names"], manifest["samples"]
    require(config["dtype"] in DTYPES, "config.dtype", f"one of {list(DTYPES)}", config["dtype"])
    crop = config["host"]["crop"]
    require(crop is None or 0 < crop <= 1, "config.host.crop", "above 0 and at most 1", crop)
    _check_layers(config["layers"], "config.layers")
    require(len(set(names)) == len(names), "concept_names", "distinct", names)
    for split, n in samples.items():
        _split(split, "samples")
        for place in ("unlabelled", "concepts"):
            require(split in manifest[place], place, f"a mapping with the key {split!r}", list(manifest[place]))
        counts = manifest["concepts"][split]
        require(list(counts) == names, f"concepts.{split}", "a mapping of concept_names", list(counts))
        total = manifest["unlabelled"][split] + sum(counts.values())
        require(n == total, f"samples.{split}", f"the sum over concepts and unlabelled, {total}", n)
    for place in ("unlabelled", "concepts"):
        require(manifest[place].keys() == samples.keys(), place, f"of the splits {list(samples)}", manifest[place])
    for name, layer in manifest["layers"].items():
        place, splits, mean = f"layers.{name}", layer["splits"], layer["mean"]
        require(name in config["layers"], place, f"one of config.layers, {config['layers']}", name)
        require(splits.keys() == samples.keys(), f"{place}.splits", f"of the splits {list(samples)}", list(splits))
        length = layer["d_in"] if "train" in splits else None
        require((mean and len(mean)) == length, f"{place}.mean", f"of length {length}", mean)
        for split, chunks in splits.items():
            for i, chunk in enumerate(chunks):
                _check_chunk(chunk, name, split, layer["d_in"], config["dtype"], f"{place}.splits.{split}[{i}]")
            shards = [_shard_of(chunk["file"]) for chunk in chunks]
            holds = shards == sorted(set(shards)) and all(shard < len(manifest["shards"]) for shard in shards)
            require(holds, f"{place}.splits.{split}", "of shards in their order", shards)
            n = sum(sum(chunk["rows"]) for chunk in chunks)
            require(n == samples[split], f"{place}.splits.{split}", f"of {samples[split]} samples together", n)


def check_record(record: dict[str, Any], shard: int, cache: str, config: dict[str, Any], n_concepts: int) -> None:
    """Check that the record of a shard is consistent, and that a harvest could have written it.

    Args:
        record: The record.
        shard: Expected number of the shard.
        cache: Expected checksum of the configuration of the cache.
        config: Configuration of the cache.
        n_concepts: Number of concepts.

    Raises:
        ValueError: If not; the message names the place.
    """
    _RECORD(record, "")
    require(record["shard"] == shard, "shard", str(shard), record["shard"])
    require(record["cache"] == cache, "cache", "that of this harvest", record["cache"])
    for split, numbers in record["counts"].items():
        _split(split, "counts")
        require(len(numbers) == n_concepts + 1, f"counts.{split}", f"of length {n_concepts + 1}", numbers)
    found = [(part["layer"], part["split"]) for part in record["parts"]]
    expected = [(layer, split) for layer in config["layers"] for split in record["counts"]]
    require(sorted(found) == sorted(expected), "parts", f"of the layers and splits {expected}", found)
    for i, part in enumerate(record["parts"]):
        place, split = f"parts[{i}]", part["split"]
        _check_chunk(part, part["layer"], split, part["d_in"], config["dtype"], place)
        require(_shard_of(part["file"]) == shard, f"{place}.file", f"of shard {shard}", part["file"])
        n = sum(record["counts"][split])
        require(sum(part["rows"]) == n, f"{place}.rows", f"{n} together", part["rows"])
        length = part["d_in"] if split == "train" else None
        require((part["sum"] and len(part["sum"])) == length, f"{place}.sum", f"of length {length}", part["sum"])


def files_of(manifest: dict[str, Any]) -> set[str]:
    """Return the paths, relative to the cache, of all files that a manifest lists."""
    splits = [(name, split, chunks) for name in manifest["layers"] for split, chunks in _splits(manifest, name)]
    return {
        MANIFEST,
        *(record_file(shard) for shard in range(len(manifest["shards"]))),
        *(index_file(name, split) for name, split, _ in splits),
        *(chunk["file"] for _, _, chunks in splits for chunk in chunks),
    }


def _splits(manifest: dict[str, Any], layer: str) -> list[tuple[Split, list[dict[str, Any]]]]:
    return list(manifest["layers"][layer]["splits"].items())


def _shard_of(file: str) -> int:
    place = place_of(file)
    return -1 if place is None else place[1]


def _check_layers(layers: list[str], place: str) -> None:
    """Check that layers can be names of folders, also on file systems that ignore case."""
    for name in layers:
        holds = name.isprintable() and re.fullmatch(r"[^./\\:][^/\\:]*", name) is not None
        holds = holds and len(name.encode()) <= 255 and name.casefold() not in (RECORDS, MANIFEST)
        require(holds, place, "names that folders of a cache can have", name)
    holds = len({name.casefold() for name in layers}) == len(layers)
    require(holds, place, "names that differ by more than their case", layers)


def _check_chunk(chunk: dict[str, Any], layer: str, split: Split, d_in: int, dtype: str, place: str) -> None:
    expected = chunk_file(layer, split, _shard_of(chunk["file"]))
    require(chunk["file"] == expected, f"{place}.file", f"that of a chunk in {layer}/{split}", chunk["file"])
    rows = chunk["rows"]
    holds = bool(rows) and all(n == BLOCK for n in rows[:-1]) and rows[-1] <= BLOCK
    require(holds, f"{place}.rows", f"blocks of {BLOCK}, except for a smaller last one", rows)
    size = chunk_bytes(rows, d_in, DTYPES[dtype])
    require(size <= MAX_CHUNK_BYTES, f"{place}.rows", f"at most {MAX_CHUNK_BYTES} bytes of d_in features", rows)
    require(chunk["bytes"] == size, f"{place}.bytes", f"{size}, by rows, d_in and dtype", chunk["bytes"])
    require(len(chunk["blocks"]) == len(rows), f"{place}.blocks", f"of length {len(rows)}", chunk["blocks"])
