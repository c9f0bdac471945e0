"""Write caches of activations: blocks in litdata's format, and a manifest that describes them."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_lightning.data.activations.blocks import Block, block_sizes, index_bytes, write_chunk
from sae_lightning.data.activations.cache_files import (
    MANIFEST,
    RECORDS,
    check_file,
    checksum,
    chunk_file,
    damaged,
    files_in,
    index_file,
    is_hidden,
    is_unfinished,
    is_written,
    record_file,
    work_folder,
)
from sae_lightning.data.activations.hosts.base import Read
from sae_lightning.data.activations.manifest import (
    FORMAT,
    check_manifest,
    check_record,
    files_of,
    read_manifest,
    read_record,
)
from sae_lightning.data.datamodule import SPLIT_SEEDS, Split
from sae_lightning.moved import current
from sae_lightning.run.files import replacing
from sae_lightning.run.seal import seal_json


class CacheWriter:
    """Writes a cache shard by shard; each shard is written atomically.

    A cache holds a folder for each layer and split, which is a dataset in litdata's format: an item is a block of
    activations with their labels. `shards/` holds a record of each shard, which is written after its activations, and
    `manifest.json` summarizes the records. All files depend on the activations and the configuration only, so that
    caches can be compared byte by byte. The checksums of existing shards are verified.

    Args:
        folder: The cache.
        config: Configuration of the harvest in plain values, with at least `host`, `source`, `layers` and `dtype`.
        concept_names: Names of the concepts.

    Raises:
        ValueError: If the folder holds other files, a cache of another configuration or a damaged cache; if a layer's
            name cannot be the name of a folder; or if two concepts share a name.
    """

    def __init__(self, folder: Path, config: dict[str, Any], concept_names: list[str]) -> None:
        self.folder = folder
        self.config: dict[str, Any] = json.loads(json.dumps(config))
        self.concept_names = concept_names
        given = {**self.config, "concept_names": concept_names}
        files = set[str]()
        for file in files_in(folder):
            if not (is_written(file) or is_hidden(file)):
                raise self._stranger(file)
            files.add(file)
        if MANIFEST in files:
            manifest = read_manifest(folder)
            saved = {**manifest["config"], "concept_names": manifest["concept_names"]}
            changed = _differences(current(saved), given)
            if changed:
                raise ValueError(
                    f"output {str(folder)!r} holds a cache of another configuration ({'; '.join(changed)}): choose "
                    "another folder, or replace it with --overwrite true"
                )
            self.config, given = manifest["config"], saved  # import paths as they were when the cache was begun
        self._identity = hashlib.sha256(seal_json({"format": FORMAT, **given})).hexdigest()
        for file in files:
            if is_hidden(file):
                if is_unfinished(file):
                    (folder / file).unlink()
            elif file != MANIFEST and Path(file).parts[0] not in (RECORDS, *self.config["layers"]):
                raise self._stranger(file)
        for leftover in folder.glob(".work-*"):
            if is_unfinished(leftover.name):
                shutil.rmtree(leftover)
        self._check_shards(sorted(file for file in files if file.startswith(f"{RECORDS}/") and not is_hidden(file)))
        (folder / RECORDS).mkdir(parents=True, exist_ok=True)
        if MANIFEST not in files:
            self.finish(complete=False)

    def _stranger(self, file: str) -> ValueError:
        return ValueError(
            f"output must be a new folder or a cache, but {str(self.folder)!r} holds other files, such as {file!r}"
        )

    def _check_shards(self, records: list[str]) -> None:
        from tqdm import tqdm

        for file in tqdm(records, desc="verifying existing shards", unit=" shards", disable=not records, leave=False):
            record = self.record(int(Path(file).stem))
            for part in record["parts"] if record else []:
                check_file(self.folder, part["file"], part["bytes"], part["sha256"])

    def record(self, shard: int) -> dict[str, Any] | None:
        """Return the record of a shard; None if it has not been written.

        Raises:
            ValueError: If the record is damaged or belongs to another cache.
        """
        return read_record(self.folder, shard, self._identity, self.config, len(self.concept_names))

    def write(self, shard: int, reads: Mapping[Split, Read], **facts: Any) -> dict[str, Any]:
        """Write a shard and its record.

        Args:
            shard: Number of the shard.
            reads: Its activations by split.
            facts: Further entries of its record.

        Returns:
            The record.

        Raises:
            ValueError: If there are too many activations for one file, or a label is not below the number of concepts.
        """
        work = self.folder / work_folder(shard)
        shutil.rmtree(work, ignore_errors=True)
        n_concepts = len(self.concept_names)
        parts, moves = [], []
        try:
            for split, read in reads.items():
                for layer, activations in read.activations.items():
                    block = Block(activations, *read[1:])
                    source, digests = write_chunk(work / layer / split, block, n_concepts)
                    parts.append(
                        {
                            "layer": layer,
                            "split": split,
                            "file": chunk_file(layer, split, shard),
                            "rows": block_sizes(len(activations)),
                            "d_in": activations.shape[1],
                            "bytes": source.stat().st_size,
                            "sha256": checksum(source),
                            "blocks": digests,
                            "sum": activations.double().sum(0).tolist() if split == "train" else None,
                        }
                    )
                    moves.append((source, self.folder / chunk_file(layer, split, shard)))
            for source, target in moves:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        counts = {
            split: torch.bincount(read.concepts + 1, minlength=n_concepts + 1).tolist() for split, read in reads.items()
        }
        record = {"shard": shard, "cache": self._identity, **facts, "counts": counts, "parts": parts}
        check_record(record, shard, self._identity, self.config, n_concepts)
        with replacing(self.folder / record_file(shard)) as file:
            file.write(seal_json(record))
        return record

    def finish(self, complete: bool, n_shards: int = 0) -> None:
        """Write the manifest and litdata's indices.

        Args:
            complete: Whether the harvest has ended; other shards are then removed.
            n_shards: Number of shards to include, from the first on.

        Raises:
            ValueError: If a record is missing or damaged, or shards differ in the number of features at a layer.
        """
        records = []
        for shard in range(n_shards):
            record = self.record(shard)
            if record is None:
                raise damaged(self.folder, record_file(shard), "is missing")
            records.append(record)
        layers: dict[str, Any] = {}
        for record in records:
            for part in record["parts"]:
                layer = layers.setdefault(part["layer"], {"d_in": part["d_in"], "mean": None, "splits": {}})
                if part["d_in"] != layer["d_in"]:
                    raise ValueError(
                        f"layers must return activations of one size, but {part['layer']!r} returned {layer['d_in']} "
                        f"features, and {part['d_in']} in shard {record['shard']}"
                    )
                chunk = {key: part[key] for key in ("file", "rows", "bytes", "sha256", "blocks")}
                layer["splits"].setdefault(part["split"], []).append(chunk)
                if part["sum"] is not None:
                    total = torch.tensor(part["sum"], dtype=torch.float64)
                    layer["mean"] = total if layer["mean"] is None else layer["mean"] + total
        for layer in layers.values():
            if layer["mean"] is not None:
                n = sum(sum(chunk["rows"]) for chunk in layer["splits"]["train"])
                layer["mean"] = (layer["mean"] / n).tolist()
        counts = {
            split: torch.tensor([record["counts"][split] for record in records if split in record["counts"]])
            .sum(0)
            .tolist()
            for split in SPLIT_SEEDS
            if any(split in record["counts"] for record in records)
        }
        manifest = {
            "format": FORMAT,
            "complete": complete,
            "config": self.config,
            "concept_names": self.concept_names,
            "examples": sum(record["examples"] for record in records),
            "tokens": sum(record["tokens"] for record in records),
            "skipped": [name for record in records for name in record["skipped"]],
            "unaligned_words": sum(record["unaligned"] for record in records),
            "samples": {split: sum(numbers) for split, numbers in counts.items()},
            "unlabelled": {split: numbers[0] for split, numbers in counts.items()},
            "concepts": {
                split: dict(zip(self.concept_names, numbers[1:], strict=True)) for split, numbers in counts.items()
            },
            "layers": layers,
            "shards": [checksum(self.folder / record_file(shard)) for shard in range(n_shards)],
        }
        check_manifest(manifest)
        if complete:
            unlisted = {file for file in files_in(self.folder) if is_written(file)} - files_of(manifest)
            # records first: if interrupted, a chunk without a record is ignored, but a record without chunks is damage
            for file in sorted(unlisted, key=lambda file: not file.startswith(f"{RECORDS}/")):
                (self.folder / file).unlink()
        for name, layer in layers.items():
            for split, chunks in layer["splits"].items():
                with replacing(self.folder / index_file(name, split)) as opened:
                    opened.write(index_bytes(chunks))
        with replacing(self.folder / MANIFEST) as opened:
            opened.write(seal_json(manifest))


def delete_cache(folder: Path) -> None:
    """Delete the folder of a cache, if it holds nothing else.

    Raises:
        ValueError: If the folder holds no cache, or other files too.
    """
    files = set(files_in(folder))
    if MANIFEST not in files:
        raise ValueError(f"output {str(folder)!r} holds no cache (no {MANIFEST}), so it is not deleted")
    for file in sorted(files):
        if not (is_written(file) or is_unfinished(file)):
            raise ValueError(f"output {str(folder)!r} holds more than a cache, such as {file!r}, so it is not deleted")
    shutil.rmtree(folder)


def _differences(saved: Any, given: Any, path: str = "") -> list[str]:
    if isinstance(saved, dict) and isinstance(given, dict):
        keys = sorted(saved.keys() | given.keys())
        return [
            text
            for key in keys
            for text in _differences(saved.get(key), given.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if saved == given else [f"{path} was {saved!r}, now {given!r}"]
