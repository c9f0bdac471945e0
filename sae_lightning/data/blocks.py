"""Blocks of activations in litdata's format: written, found and read."""

import hashlib
import json
import os
import struct
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.cache_files import check_bytes, damaged, index_file, is_remote
from sae_lightning.data.datamodule import Split

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
BLOCK = 1024  # activations that are stored, and read, together
MAX_CHUNK_BYTES = 2**32 - 1  # litdata's offsets within a chunk are of 32 bits
_LEAF: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
_CONFIG = {
    "chunk_bytes": None,
    "chunk_size": 1,
    "compression": None,
    "compression_batch_size": None,
    "compression_level": None,
    # a matrix of any type, and vectors of int64, int64, int32 and int32
    "data_format": ["tensor", *2 * ["no_header_tensor:18"], *2 * ["no_header_tensor:16"]],
    "data_spec": json.dumps([1, {"type": "builtins.tuple", "context": "null", "children_spec": 5 * [_LEAF]}]),
    "encryption": None,
    "ipc_compression": None,
    "item_loader": "PyTreeLoader",
    "types": "json",
}
# what litdata, torch and the readers of other formats raise on bytes that are none of theirs
_PARSING = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, AssertionError),
    *(ImportError, MemoryError, struct.error),
)


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

    def fault(self, n: int, d_in: int, dtype: torch.dtype, n_concepts: int) -> str | None:
        """What is wrong with the block, such as a label without a concept; None if nothing is.

        Args:
            n: Its activations.
            d_in: Size of an activation.
            dtype: Type of the activations.
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
    """Activations of each block of a chunk of `n` activations."""
    return [min(BLOCK, n - begin) for begin in range(0, n, BLOCK)]


def chunk_bytes(rows: Sequence[int], d_in: int, dtype: torch.dtype) -> int:
    """Size of a chunk.

    Args:
        rows: Activations of each block.
        d_in: Size of an activation.
        dtype: Type of the activations.
    """
    # number of blocks and offsets; for a block the sizes of its tensors, and type, rank and shape of the activations
    return 4 * (len(rows) + 2) + sum(4 * 5 + 4 * 4 + n * (d_in * dtype.itemsize + 24) for n in rows)


def write_chunk(folder: Path, block: Block, n_concepts: int) -> tuple[Path, list[str]]:
    """Write activations as a chunk of blocks, and make sure that it is on the disk.

    Args:
        folder: An empty folder.
        block: The activations.
        n_concepts: Number of concepts.

    Returns:
        The file, and the checksum of each block.

    Raises:
        ValueError: If a chunk cannot hold that many activations, or a label has no concept.
    """
    try:
        from litdata.streaming.writer import BinaryWriter
    except ImportError:
        raise ValueError("caches need litdata: pip install 'sae-lightning[activations]'") from None
    (n, d_in), dtype = block.activations.shape, block.activations.dtype
    rows = block_sizes(n)
    if (size := chunk_bytes(rows, d_in, dtype)) > MAX_CHUNK_BYTES:
        raise ValueError(
            f"window_size must be smaller: the {n:,} activations of a window take {size:,} bytes, and a file of a "
            f"cache at most {MAX_CHUNK_BYTES:,}"
        )
    if fault := block.fault(n, d_in, dtype, n_concepts):
        raise ValueError(f"host and source must give activations that can be stored, but a window {fault}")
    folder.mkdir(parents=True, exist_ok=True)
    writer = BinaryWriter(str(folder), chunk_size=len(rows))
    digests = []
    for i, n_rows in enumerate(rows):
        stored = tuple(_storable(values[i * BLOCK : i * BLOCK + n_rows]) for values in block)
        digests.append(_digest(stored))
        writer.add_item(i, stored)
    (path,) = writer.done()
    written = writer.get_config()
    if written["data_format"] != _CONFIG["data_format"] or os.path.getsize(path) != size:
        raise ValueError(f"litdata must write tensors as 0.2.76 did, but writes {written['data_format']}")
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
    return Path(path), digests


def index_bytes(chunks: list[dict[str, Any]]) -> bytes:
    """The file by which litdata finds its chunks and knows what they hold.

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
    # litdata keeps what it downloads until this changes
    version = hashlib.sha256("".join(chunk["sha256"] for chunk in chunks).encode()).hexdigest()
    return json.dumps({"chunks": entries, "config": _CONFIG, "updated_at": version[:32]}).encode()


class CachedActivations(Dataset[ActivationBatch]):
    """The blocks of one layer and split of a cache; an index is a list of (block, first row, behind the last row).

    Args:
        cache: Folder of the cache, or its address in an object store.
        layer: Name of the layer.
        split: The split.
        chunks: Its chunks, as in the manifest.
        d_in: Size of an activation.
        dtype: Type of the stored activations.
        n_concepts: Number of concepts.
        verify: Whether the checksum of each block is compared when it is read.
    """

    def __init__(
        self,
        cache: str,
        layer: str,
        split: Split,
        chunks: list[dict[str, Any]],
        d_in: int,
        dtype: torch.dtype,
        n_concepts: int,
        verify: bool,
    ) -> None:
        self._cache = cache
        self._index = index_file(layer, split)
        self._chunks = chunks
        self._known = [known for chunk in chunks for known in zip(*_columns(chunk), strict=True)]
        self._d_in = d_in
        self._dtype = dtype
        self._n_concepts = n_concepts
        self._verify = verify
        self._blocks: Any = None
        self._checked = set[int]()

    def check_index(self) -> None:
        """See whether litdata's index says what the manifest says.

        Raises:
            ValueError: If it is missing or another.
        """
        check_bytes(self._cache, self._index, index_bytes(self._chunks))

    def block(self, index: int) -> Block:
        """One block.

        Raises:
            ValueError: If it is not what was written.
        """
        file, rows, digest = self._known[index]
        if self._blocks is None:  # opened where it is read, which may be a worker process
            self._blocks = self._open()
        try:
            with warnings.catch_warnings():
                # litdata's tensors lie in the file's memory, which nobody may write: batches are copies
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                activations, *rest = stored = self._blocks[index]
            if self._dtype == torch.bfloat16 and activations.dtype == torch.int16:
                activations = activations.view(torch.bfloat16)
            block = Block(activations, *rest)
            # once, unless it may be another whenever it is fetched
            seen = index in self._checked and not self._verify
            fault = None if seen else block.fault(rows, self._d_in, self._dtype, self._n_concepts)
        except _PARSING as error:
            raise damaged(self._cache, file, f"cannot be read ({error})") from None
        if fault is None and self._verify and _digest(stored) != digest:
            fault = "has another checksum than when it was written"
        if fault is not None:
            raise damaged(self._cache, file, fault)
        self._checked.add(index)
        return block

    def _open(self) -> Any:
        from litdata import StreamingDataset

        folder = f"{self._cache}/{Path(self._index).parent}"
        with TemporaryDirectory() as name:
            # what the index in an object store says may have changed since it was checked
            own = Path(name, "index.json")
            own.write_bytes(index_bytes(self._chunks))
            index = str(own) if is_remote(self._cache) else None
            return StreamingDataset(folder, serializers=_tensors_only(folder), index_path=index)

    def __getitem__(self, rows: list[tuple[int, int, int]]) -> ActivationBatch:
        parts = []
        for index, begin, end in rows:
            block = self.block(index)
            parts.append((block.activations[begin:end], block.concepts[begin:end]))
        activations, concepts = (torch.cat(values) for values in zip(*parts, strict=True))
        return ActivationBatch(activations.float(), concepts)

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is open."""
        return {**self.__dict__, "_blocks": None}


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


def _tensors_only(folder: str) -> dict[str, Any]:
    """Serializers with which litdata reads tensors, and refuses everything else that an index may name."""
    from litdata.streaming.serializers import _SERIALIZERS

    return {kind: _Refused(folder) for kind in _SERIALIZERS if kind not in ("tensor", "no_header_tensor")}


def _columns(chunk: dict[str, Any]) -> tuple[list[str], list[int], list[str]]:
    """File, rows and checksum of each block of a chunk."""
    return [chunk["file"]] * len(chunk["rows"]), chunk["rows"], chunk["blocks"]


def _storable(values: Tensor) -> Tensor:
    """Numpy, through which litdata writes, does not know bfloat16: its bits are stored as integers."""
    return values.contiguous().view(torch.int16) if values.dtype == torch.bfloat16 else values.contiguous()


def _digest(stored: Sequence[Tensor]) -> str:
    """Checksum of the tensors of a block."""
    digest = hashlib.sha256()
    for values in stored:
        digest.update(values.numpy().data)
    return digest.hexdigest()
