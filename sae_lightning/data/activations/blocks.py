"""Blocks of activations in litdata's format: content, size and writing."""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BLOCK = 1024  # activations per block, the unit of reading
MAX_CHUNK_BYTES = 2**32 - 1  # litdata's offsets within a chunk have 32 bits
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_CONFIG = {
    "chunk_bytes": None,
    "chunk_size": 1,
    "compression": None,
    "compression_batch_size": None,
    "compression_level": None,
    # a matrix of any type, two int64 vectors and two int32 vectors
    "data_format": ["tensor", *2 * ["no_header_tensor:18"], *2 * ["no_header_tensor:16"]],
    "data_spec": json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": 5 * [_LEAF]}]),
    "encryption": None,
    "ipc_compression": None,
    "item_loader": "PyTreeLoader",
    "types": "json",
}


class Block(NamedTuple):
    """Activations that are stored together, with the concept and the origin of each."""

    activations: Tensor
    """`(n, d_in)`."""
    concepts: Tensor
    """Concept of each, -1 for none, int64 `(n,)`."""
    examples: Tensor
    """Index of the example in its source, int64 `(n,)`."""
    starts: Tensor
    """First character, or index of the patch; -1 for the whole example, int32 `(n,)`."""
    ends: Tensor
    """One past the last character, or number of patches; -1 for the whole example, int32 `(n,)`."""

    def fault(self, n: int, d_in: int, dtype: torch.dtype, n_concepts: int) -> str | None:
        """Describe what is wrong with the block, such as a label that is too large; None if it is valid.

        Args:
            n: Expected number of activations.
            d_in: Expected number of features.
            dtype: Expected type of the activations.
            n_concepts: Number of concepts.
        """
        shapes = [(n, d_in), (n,), (n,), (n,), (n,)]
        dtypes = [dtype, torch.int64, torch.int64, torch.int32, torch.int32]
        for name, values, shape, kind in zip(self._fields, self, shapes, dtypes, strict=True):
            if values.shape != shape or values.dtype != kind:
                return f"holds {name} of shape {tuple(values.shape)} and {values.dtype} instead of {shape} and {kind}"
        low, high = (int(bound) for bound in self.concepts.aminmax())
        if low < -1 or high >= n_concepts:
            return f"holds concepts from {low} to {high}, but there are {n_concepts} concepts"
        if (self.examples < 0).any():
            return f"holds the example {int(self.examples.min())}"
        if (self.starts < -1).any() or (self.ends < self.starts).any():
            return "holds an activation whose place ends before it starts"
        return None


def block_sizes(n: int) -> list[int]:
    """Return the number of activations of each block in a chunk of `n` activations.

    Example:
        >>> from sae_lightning.data.activations.blocks import block_sizes
        >>> block_sizes(2500)
        [1024, 1024, 452]
    """
    return [min(BLOCK, n - begin) for begin in range(0, n, BLOCK)]


def chunk_bytes(rows: Sequence[int], d_in: int, dtype: torch.dtype) -> int:
    """Return the size of a chunk in bytes.

    Args:
        rows: Number of activations of each block.
        d_in: Number of features of an activation.
        dtype: Type of the activations.
    """
    # header: number of blocks and offsets; per block: sizes of the tensors; type, rank and shape of the activations
    return 4 * (len(rows) + 2) + sum(4 * 5 + 4 * 4 + n * (d_in * dtype.itemsize + 24) for n in rows)


def write_chunk(folder: Path, block: Block, n_concepts: int) -> tuple[Path, list[str]]:
    """Write activations as a chunk of blocks, and flush it to disk.

    Args:
        folder: An empty folder.
        block: The activations.
        n_concepts: Number of concepts.

    Returns:
        The file, and the checksum of each block.

    Raises:
        ValueError: If there are too many activations for a chunk, or a label is not below `n_concepts`.
    """
    try:
        from litdata.streaming.writer import BinaryWriter
    except ImportError:
        raise ValueError("caches need litdata: pip install 'sae-lightning[activations]'") from None
    (n, d_in), dtype = block.activations.shape, block.activations.dtype
    rows = block_sizes(n)
    if (size := chunk_bytes(rows, d_in, dtype)) > MAX_CHUNK_BYTES:
        raise ValueError(
            f"window_size must be smaller: the {n:,} activations of a window take {size:,} bytes, but a file of a "
            f"cache holds at most {MAX_CHUNK_BYTES:,}"
        )
    if fault := block.fault(n, d_in, dtype, n_concepts):
        raise ValueError(f"host and source must give activations that can be stored, but a window {fault}")
    folder.mkdir(parents=True, exist_ok=True)
    writer = BinaryWriter(str(folder), chunk_size=len(rows))
    digests = []
    for i, n_rows in enumerate(rows):
        stored = tuple(_storable(values[i * BLOCK : i * BLOCK + n_rows]) for values in block)
        digests.append(block_digest(stored))
        writer.add_item(i, stored)
    (path,) = writer.done()
    written = writer.get_config()
    if written["data_format"] != _CONFIG["data_format"] or os.path.getsize(path) != size:
        raise ValueError(f"litdata must write tensors as 0.2.76 did, but writes {written['data_format']}")
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return Path(path), digests


def index_bytes(chunks: list[dict[str, Any]]) -> bytes:
    """Return the content of litdata's index of chunks.

    Args:
        chunks: The chunks of a layer and split, as in the manifest.
    """
    entries = [
        {
            "chunk_bytes": chunk["bytes"],
            "chunk_size": len(chunk["rows"]),
            "dim": None,
            "filename": Path(chunk["file"]).name,
        }
        for chunk in chunks
    ]
    # litdata reuses its downloads until this value changes
    version = hashlib.sha256("".join(chunk["sha256"] for chunk in chunks).encode()).hexdigest()
    return json.dumps({"chunks": entries, "config": _CONFIG, "updated_at": version[:32]}).encode()


def _storable(values: Tensor) -> Tensor:
    """View bfloat16 as int16: litdata writes through NumPy, which has no bfloat16."""
    return values.contiguous().view(torch.int16) if values.dtype == torch.bfloat16 else values.contiguous()


def block_digest(stored: Sequence[Tensor]) -> str:
    """Return the checksum of the tensors of a block, as they are stored."""
    digest = hashlib.sha256()
    for values in stored:
        digest.update(values.numpy().data)
    return digest.hexdigest()
