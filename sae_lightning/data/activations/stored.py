"""Read and check the blocks of a cache."""

import struct
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch.utils.data import Dataset

from sae_lightning.data.activations.blocks import Block, block_digest, index_bytes
from sae_lightning.data.activations.cache_files import check_bytes, damaged, index_file, is_remote
from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.datamodule import Split

# errors that litdata, torch and the readers of other formats raise on invalid bytes
_PARSING = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, AssertionError),
    *(ImportError, MemoryError, struct.error),
)


class CachedActivations(Dataset[ActivationBatch]):
    """The activations of one layer and split of a cache, indexed by lists of (block, first row, one past the last row).

    Args:
        cache: Folder of the cache, or its address in an object store.
        layer: Name of the layer.
        split: The split.
        chunks: Its chunks, as in the manifest.
        d_in: Number of features of an activation.
        dtype: Type of the stored activations.
        n_concepts: Number of concepts.
        verify: Whether to verify the checksum of each block when it is read.
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
        self._known = [
            (chunk["file"], rows, sha256)
            for chunk in chunks
            for rows, sha256 in zip(chunk["rows"], chunk["blocks"], strict=True)
        ]
        self._d_in = d_in
        self._dtype = dtype
        self._n_concepts = n_concepts
        self._verify = verify
        self._blocks: Any = None
        self._checked = set[int]()

    def check_index(self) -> None:
        """Check that litdata's index agrees with the manifest.

        Raises:
            ValueError: If it is missing or differs.
        """
        check_bytes(self._cache, self._index, index_bytes(self._chunks))

    def block(self, index: int) -> Block:
        """Read one block.

        Raises:
            ValueError: If it is damaged.
        """
        file, rows, digest = self._known[index]
        if self._blocks is None:  # opened on first use, which may be in a worker process
            self._blocks = self._open()
        try:
            with warnings.catch_warnings():
                # litdata's tensors are views of read-only memory, which is safe here: batches are copies
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                activations, *rest = stored = self._blocks[index]
            if self._dtype == torch.bfloat16 and activations.dtype == torch.int16:
                activations = activations.view(torch.bfloat16)
            block = Block(activations, *rest)
            # checked once per block, but with every read from an object store, whose content may change
            seen = index in self._checked and not self._verify
            fault = None if seen else block.fault(rows, self._d_in, self._dtype, self._n_concepts)
        except _PARSING as error:
            raise damaged(self._cache, file, f"cannot be read ({error})") from None
        if fault is None and self._verify and block_digest(stored) != digest:
            fault = "has another checksum than when it was written"
        if fault is not None:
            raise damaged(self._cache, file, fault)
        self._checked.add(index)
        return block

    def _open(self) -> Any:
        from litdata import StreamingDataset

        folder = f"{self._cache}/{Path(self._index).parent}"
        with TemporaryDirectory() as name:
            # the index in an object store may have changed since it was checked
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
        """Leave out the open dataset."""
        return {**self.__dict__, "_blocks": None}


class _Refused:
    """A serializer that refuses to read; it replaces those of unsafe kinds, such as pickled objects."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def setup(self, kind: Any) -> None:
        """Raise an error; litdata calls this with the kind in the index before it reads any item."""
        raise ValueError(
            f"cache must hold tensors only, but the index of {self._folder!r} says that it holds items of the kind "
            f"{kind!r}: it was not written by `sae-lightning harvest`, and reading it might execute code"
        )


def _tensors_only(folder: str) -> dict[str, Any]:
    """Return serializers with which litdata reads tensors and refuses all other kinds of items."""
    from litdata.streaming.serializers import _SERIALIZERS

    return {kind: _Refused(folder) for kind in _SERIALIZERS if kind not in ("tensor", "no_header_tensor")}
