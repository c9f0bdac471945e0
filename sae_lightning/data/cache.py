"""Activations on disk: blocks in litdata's format, and a manifest that says what they are."""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_lightning.data.datamodule import SPLIT_SEEDS, Split
from sae_lightning.data.hosts.base import Read
from sae_lightning.files import replacing, temporary_of

FORMAT = 1
MANIFEST = "manifest.json"
_RECORDS = "shards"
_REMOTE = ("s3://", "gs://", "r2://", "azure://", "hf://", "local:")
_BLOCK = 1024  # activations that are stored, and read, together


class Block(NamedTuple):
    """Activations that lie together, with what is known of each."""

    activations: Tensor
    """`(n, d_in)`."""
    concepts: Tensor
    """Concept, -1 for none, int64 `(n,)`."""
    examples: Tensor
    """Number of the example in its source, int64 `(n,)`."""
    starts: Tensor
    """First character, or number of the patch; -1 for the whole example, int32 `(n,)`."""
    ends: Tensor
    """Behind the last character, or number of patches; -1 for the whole example, int32 `(n,)`."""


class CacheWriter:
    """Writes a cache shard by shard; a shard is there as a whole or not at all.

    A cache holds a folder for each layer and split, which is a dataset in litdata's format: an item is a block of
    activations with their labels. `shards/` holds a record of each shard, written last, and `manifest.json` sums up the
    records. What is written depends on the activations alone, so that caches can be compared byte by byte.

    Args:
        folder: The cache.
        config: What the cache is made of, in plain values.
        concept_names: Names of the concepts.

    Raises:
        ValueError: If the folder holds something else, or a cache of another configuration.
    """

    def __init__(self, folder: Path, config: dict[str, Any], concept_names: list[str]) -> None:
        self.folder = folder
        self.config = config
        self.concept_names = concept_names
        if (folder / MANIFEST).is_file():
            changed = _differences(read_manifest(folder)["config"], json.loads(json.dumps(config)))
            if changed:
                raise ValueError(
                    f"output {str(folder)!r} holds a cache of another configuration ({'; '.join(changed)}): choose "
                    "another folder, or replace it with --overwrite true"
                )
        elif any(path.is_file() and path != temporary_of(folder / MANIFEST) for path in folder.rglob("*")):
            raise ValueError(f"output must be a new folder or a cache, but {str(folder)!r} holds other files")
        (folder / _RECORDS).mkdir(parents=True, exist_ok=True)
        for leftover in folder.rglob(".work-*"):
            shutil.rmtree(leftover)
        if not (folder / MANIFEST).is_file():
            self.finish(complete=False)

    def record(self, shard: int) -> dict[str, Any] | None:
        """The record of a shard; None if it has not been written."""
        path = self.folder / _RECORDS / f"{shard:06d}.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def write(self, shard: int, reads: Mapping[Split, Read], **facts: Any) -> dict[str, Any]:
        """Write a shard and its record, which is returned.

        Args:
            shard: Its number.
            reads: Its activations, by split.
            facts: What else its record should say.
        """
        work = self.folder / f".work-{shard:06d}"
        shutil.rmtree(work, ignore_errors=True)
        parts, moves = [], []
        try:
            for split, read in reads.items():
                for layer, activations in read.activations.items():
                    block = Block(activations, *read[1:])
                    source = _write_chunk(work / layer / split, block)
                    target = self.folder / layer / split / f"chunk-{shard:06d}.bin"
                    parts.append(
                        {
                            "layer": layer,
                            "split": split,
                            "file": str(target.relative_to(self.folder)),
                            "rows": _block_sizes(len(block.activations)),
                            "d_in": activations.shape[1],
                            "bytes": source.stat().st_size,
                            "sha256": checksum(source),
                            "sum": activations.double().sum(0).tolist() if split == "train" else None,
                        }
                    )
                    moves.append((source, target))
            for source, target in moves:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        counts = {
            split: torch.bincount(read.concepts + 1, minlength=len(self.concept_names) + 1).tolist()
            for split, read in reads.items()
        }
        record = {"shard": shard, **facts, "counts": counts, "parts": parts}
        with replacing(self.folder / _RECORDS / f"{shard:06d}.json", "w") as file:
            json.dump(record, file)
        return record

    def finish(self, complete: bool, n_shards: int = 0) -> None:
        """Write the manifest and litdata's indices over the first shards; what lies behind them is removed."""
        records = [self.record(shard) for shard in range(n_shards)]
        kept = [record for record in records if record is not None]
        for path in (self.folder / _RECORDS).glob("*.json"):
            if complete and int(path.stem) >= n_shards:
                for part in json.loads(path.read_text())["parts"]:
                    (self.folder / part["file"]).unlink(missing_ok=True)
                path.unlink()
        layers: dict[str, Any] = {}
        for record in kept:
            for part in record["parts"]:
                layer = layers.setdefault(part["layer"], {"d_in": part["d_in"], "mean": None, "splits": {}})
                chunk = {key: part[key] for key in ("file", "rows", "bytes", "sha256")}
                layer["splits"].setdefault(part["split"], []).append(chunk)
                if part["sum"] is not None:
                    total = torch.tensor(part["sum"], dtype=torch.float64)
                    layer["mean"] = total if layer["mean"] is None else layer["mean"] + total
        for layer in layers.values():
            if layer["mean"] is not None:
                layer["mean"] = (layer["mean"] / _n_rows(layer["splits"]["train"])).tolist()
        counts = {
            split: torch.tensor([record["counts"][split] for record in kept if split in record["counts"]])
            .sum(0)
            .tolist()
            for split in SPLIT_SEEDS
            if any(split in record["counts"] for record in kept)
        }
        manifest = {
            "format": FORMAT,
            "complete": complete,
            "config": self.config,
            "concept_names": self.concept_names,
            "examples": sum(record["examples"] for record in kept),
            "tokens": sum(record["tokens"] for record in kept),
            "skipped": [name for record in kept for name in record["skipped"]],
            "unaligned_words": sum(record["unaligned"] for record in kept),
            "samples": {split: sum(numbers) for split, numbers in counts.items()},
            "unlabelled": {split: numbers[0] for split, numbers in counts.items()},
            "concepts": {
                split: dict(zip(self.concept_names, numbers[1:], strict=True)) for split, numbers in counts.items()
            },
            "layers": layers,
        }
        for name, layer in layers.items():
            for split, chunks in layer["splits"].items():
                with replacing(self.folder / name / split / "index.json", "w") as file:
                    json.dump(_litdata_index(self.folder / name / split, chunks, self.config["dtype"]), file)
        with replacing(self.folder / MANIFEST, "w") as file:
            json.dump(manifest, file, indent=1)


def is_remote(cache: str) -> bool:
    """Whether a cache lies where litdata has to download it from."""
    return cache.startswith(_REMOTE)


def read_manifest(folder: Path | str) -> dict[str, Any]:
    """What a cache says of itself.

    Args:
        folder: The cache's folder, or its address in an object store.

    Raises:
        ValueError: If there is none, or it is damaged or of another format.
    """
    try:
        manifest: dict[str, Any] = json.loads(_manifest_text(str(folder)))
        version = manifest["format"]
    except FileNotFoundError:
        raise ValueError(
            f"cache must be a folder that `sae-lightning harvest` wrote, but there is no {MANIFEST} in {str(folder)!r}"
        ) from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"cache {str(folder)!r} is damaged: {MANIFEST} cannot be read: {error}") from error
    if version != FORMAT:
        raise ValueError(f"cache must be of format {FORMAT}, but {str(folder)!r} is of format {version}")
    return manifest


def _manifest_text(cache: str) -> str:
    if not is_remote(cache):
        return (Path(cache) / MANIFEST).read_text()
    from litdata.streaming.downloader import get_downloader

    with TemporaryDirectory() as folder:
        get_downloader(cache, folder, []).download_file(f"{cache}/{MANIFEST}", f"{folder}/{MANIFEST}")
        return Path(folder, MANIFEST).read_text()


class _Refused:
    """Stands where litdata would read items of a kind that no harvest writes, pickled objects among them."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def setup(self, kind: Any) -> None:
        """Called with the kind that the index names, before anything is read."""
        raise ValueError(
            f"cache must hold tensors only, but the index of {self._folder!r} says that it holds items of the kind "
            f"{kind!r}: it is not what `sae-lightning harvest` wrote, and reading it might execute code"
        )


def tensors_only(folder: str) -> dict[str, Any]:
    """Serializers with which litdata reads tensors, and refuses everything else that an index may name.

    Args:
        folder: What is read, for the message.
    """
    from litdata.streaming.serializers import _SERIALIZERS

    return {kind: _Refused(folder) for kind in _SERIALIZERS if kind not in ("tensor", "no_header_tensor")}


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _n_rows(chunks: list[dict[str, Any]]) -> int:
    return sum(sum(chunk["rows"]) for chunk in chunks)


def _block_sizes(n: int) -> list[int]:
    return [min(_BLOCK, n - begin) for begin in range(0, n, _BLOCK)]


def _write_chunk(folder: Path, block: Block) -> Path:
    """Write a chunk of blocks into an empty folder, and make sure that it is on the disk."""
    writer = _writer(folder, len(_block_sizes(len(block.activations))))
    for i, begin in enumerate(range(0, len(block.activations), _BLOCK)):
        writer.add_item(i, tuple(_storable(values[begin : begin + _BLOCK]) for values in block))
    (path,) = writer.done()
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return Path(path)


def _writer(folder: Path, n_blocks: int) -> Any:
    try:
        from litdata.streaming.writer import BinaryWriter
    except ImportError:
        raise ValueError("caches need litdata: pip install 'sae-lightning[activations]'") from None
    folder.mkdir(parents=True, exist_ok=True)
    return BinaryWriter(str(folder), chunk_size=n_blocks)


def _storable(values: Tensor) -> Tensor:
    """Numpy, through which litdata writes, does not know bfloat16: its bits are stored as integers."""
    return values.contiguous().view(torch.int16) if values.dtype == torch.bfloat16 else values.contiguous()


def _litdata_index(folder: Path, chunks: list[dict[str, Any]], dtype: str) -> dict[str, Any]:
    """The file by which litdata finds its chunks."""
    scratch = folder / ".work-index"
    try:
        writer = _writer(scratch, 1)
        integers = torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
        small = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        writer.add_item(0, (_storable(torch.zeros(1, 1, dtype=getattr(torch, dtype))), *integers, *small))
        config = writer.get_config()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    entries = [
        {
            "chunk_bytes": chunk["bytes"] - 4 * (len(chunk["rows"]) + 1),  # litdata counts without its header
            "chunk_size": len(chunk["rows"]),
            "dim": None,
            "filename": Path(chunk["file"]).name,
        }
        for chunk in chunks
    ]
    return {"chunks": entries, "config": config, "updated_at": "0"}


def _differences(saved: Any, given: Any, path: str = "") -> list[str]:
    if isinstance(saved, dict) and isinstance(given, dict):
        keys = sorted(saved.keys() | given.keys())
        return [
            text
            for key in keys
            for text in _differences(saved.get(key), given.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if saved == given else [f"{path} was {saved!r}, now {given!r}"]
