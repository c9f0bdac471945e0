"""The blocks of a cache, read through litdata and checked."""

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

# what litdata, torch and the readers of other formats raise on bytes that are none of theirs
_PARSING = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, AssertionError),
    *(ImportError, MemoryError, struct.error),
)


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
