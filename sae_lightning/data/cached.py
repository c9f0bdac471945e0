"""Activations from a cache that `sae-lightning harvest` wrote."""

import warnings
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from sae_lightning.data import sources
from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.cache import Block, checksum, is_remote, read_manifest, tensors_only
from sae_lightning.data.contexts import Context
from sae_lightning.data.datamodule import ActivationDataModule, Split
from sae_lightning.data.loading import ActivationDataset, ActivationLoader, BatchSequence
from sae_lightning.data.places import contexts_of
from sae_lightning.data.seeding import seeded_generator
from sae_lightning.data.sources import Source, StreamedSource

_ORDER = 3000  # keeps the random streams of orders apart from others


class BlockOrder(BatchSequence):
    """Which rows of which blocks make up a rank's batches: all blocks in a new order every epoch, one after the other.

    A batch is a list of (block, first row, behind the last row); the ranks' batches of a step are neighbours.

    Args:
        sizes: Rows of each block.
        batch_size: Rows of a batch, at least 1.
        rank: This process.
        world_size: Number of processes.
        seed: Seed of the order.
    """

    def __init__(self, sizes: Sequence[int], batch_size: int, rank: int, world_size: int, seed: int) -> None:
        super().__init__(batch_size * world_size)
        self.sizes = list(sizes)
        self.batch_size = batch_size
        self.rank = rank
        self.seed = seed

    def __len__(self) -> int:
        return sum(self.sizes) // self.per_step

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        order_epoch, order, ends = -1, list[int](), list[int]()
        for position in range(self.position, self.position + len(self)):
            epoch, first = self.place(position)
            if epoch != order_epoch:
                generator = seeded_generator(self.seed, _ORDER, epoch)
                order = torch.randperm(len(self.sizes), generator=generator).tolist()
                ends = list(accumulate(self.sizes[block] for block in order))
                order_epoch = epoch
            first += self.rank * self.batch_size
            yield self._rows(order, ends, first, first + self.batch_size)

    def _rows(self, order: list[int], ends: list[int], first: int, behind: int) -> list[tuple[int, int, int]]:
        found = []
        place = bisect_right(ends, first)
        while first < behind:
            begin = ends[place] - self.sizes[order[place]]
            until = min(behind, ends[place])
            found.append((order[place], first - begin, until - begin))
            first, place = until, place + 1
        return found


class CachedActivations(Dataset[ActivationBatch]):
    """The blocks of one layer and split of a cache; an index is a list of (block, first row, behind the last row).

    Args:
        folder: Folder of the layer and split, in litdata's format, or its address in an object store.
        dtype: Type of the stored activations.
    """

    def __init__(self, folder: str, dtype: torch.dtype) -> None:
        self._folder = folder
        self._dtype = dtype
        self._blocks: Any = None

    def block(self, index: int) -> Block:
        """One block."""
        if self._blocks is None:  # opened where it is read, which may be a worker process
            from litdata import StreamingDataset

            self._blocks = StreamingDataset(self._folder, serializers=tensors_only(self._folder))
        with warnings.catch_warnings():
            # litdata's tensors lie in the file's memory, which nobody may write: batches are copies
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            activations, *rest = self._blocks[index]
        return Block(activations.view(torch.bfloat16) if self._dtype == torch.bfloat16 else activations, *rest)

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


class CachedDataModule(ActivationDataModule):
    """Activations that `sae-lightning harvest` wrote, read from disk as training goes.

    The cache holds mixed blocks, which are read in a new order every epoch; splits are those of the harvest, by
    document or image. Validation and test are held in memory.

    Args:
        cache: Folder of the cache, or its address in an object store (s3://, gs://, ...), from which litdata downloads
            a shard when it is first read.
        layer: Name of one of its layers; None where there is just one.
        model: Name or path of the model that the activations must be of; None takes any.
        n_val: Most activations of the validation split that are used; None: all.
        n_test: Most activations of the test split that are used; None: all.
        verify: Whether the checksums of all files are compared first, which reads all of them; those in an object store
            are not compared.
        allow_incomplete: Whether the cache may be one whose harvest was interrupted.
        source: Where examples are shown from; None takes the source of the harvest, if it is one of this package's.
        batch_size: Training activations per step and process, at least 1.
        eval_batch_size: Activations per step and process in validation, test and prediction, at least 1.
        num_workers: Processes that read ahead; 0 reads in a thread, which is faster from a local disk.
        seed: Seed of the order; None takes the program's seed.

    Raises:
        ValueError: If there is no such cache or layer, it is of another model, incomplete or damaged, or a split is
            empty.
    """

    def __init__(
        self,
        cache: str,
        layer: str | None = None,
        model: str | None = None,
        n_val: int | None = None,
        n_test: int | None = None,
        verify: bool = True,
        allow_incomplete: bool = False,
        source: Source | StreamedSource | None = None,  # type: ignore[type-arg]
        batch_size: int = 1024,
        eval_batch_size: int = 4096,
        num_workers: int = 0,
        seed: int | None = None,
    ) -> None:
        manifest = read_manifest(cache)
        layers = manifest["layers"]
        if not manifest["complete"] and not allow_incomplete:
            raise ValueError(
                f"cache must be complete, but the harvest of {cache!r} was interrupted: start `sae-lightning harvest` "
                "again, or give allow_incomplete = true"
            )
        if layer is None and len(layers) == 1:
            layer = next(iter(layers))
        if layer is None or layer not in layers:
            raise ValueError(f"layer must be one of those in {cache!r}, {list(layers)}, but is {layer!r}")
        harvested = manifest["config"]["host"]["init_args"].get("name")
        if model is not None and model != harvested:
            raise ValueError(f"cache must be of the model {model!r}, but {cache!r} is of {harvested!r}")
        for name, value in {"n_val": n_val, "n_test": n_test}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        if num_workers < 0:
            raise ValueError(f"num_workers must be at least 0, but is {num_workers}")
        super().__init__(layers[layer]["d_in"], manifest["concept_names"], batch_size, eval_batch_size, seed)
        self._chunks: dict[Split, list[dict[str, Any]]] = layers[layer]["splits"]
        for split in ("train", "val", "test"):
            if split not in self._chunks:
                raise ValueError(f"every split must hold an activation, but {split!r} of {cache!r} holds none")
        self._cache = cache.rstrip("/")
        self._layer = layer
        self._dtype: torch.dtype = getattr(torch, manifest["config"]["dtype"])
        self._n: dict[Split, int | None] = {"val": n_val, "test": n_test}
        self._source = source
        self._config = manifest["config"]
        self._verify = verify
        self._verified = False
        self._held: dict[Split, Block] = {}
        self.num_workers = num_workers

    def setup(self, stage: str | None = None) -> None:
        """Agree on one seed, and see whether the files are what was written.

        Raises:
            ValueError: If a file is missing or is not what was written; it is named.
        """
        super().setup(stage)
        if not self._verified and not is_remote(self._cache):
            for chunk in (chunk for chunks in self._chunks.values() for chunk in chunks):
                self._check(chunk)
            self._verified = True

    def _check(self, chunk: dict[str, Any]) -> None:
        path = Path(self._cache, chunk["file"])
        wrong = None
        if not path.is_file():
            wrong = "is missing"
        elif path.stat().st_size != chunk["bytes"]:
            wrong = f"has {path.stat().st_size} bytes instead of {chunk['bytes']}"
        elif self._verify and checksum(path) != chunk["sha256"]:
            wrong = "has another checksum than when it was written"
        if wrong:
            raise ValueError(
                f"cache {self._cache!r} is damaged: {chunk['file']} {wrong}. Delete it with "
                f"{_record_of(chunk['file'])} and harvest again, which writes just this shard"
            )

    def _stored(self, split: Split) -> CachedActivations:
        return CachedActivations(f"{self._cache}/{self._layer}/{split}", self._dtype)

    def _sizes(self, split: Split) -> list[int]:
        return [rows for chunk in self._chunks[split] for rows in chunk["rows"]]

    def train_dataloader(self) -> ActivationLoader:
        """Training batches from disk; what does not fill a batch is left out of an epoch."""
        sizes = self._sizes("train")
        self._steps_per_epoch(sum(sizes))  # refuses what makes no epoch
        order = BlockOrder(sizes, self.batch_size, *self._processes(), self.seed)
        return ActivationLoader.of(
            self._stored("train"), order, pin_memory=torch.cuda.is_available(), num_workers=self.num_workers
        )

    def make_split(self, split: Split) -> ActivationDataset:
        """Read a whole split."""
        block = self._block(split)
        return ActivationDataset(block.activations.float(), block.concepts)

    def _block(self, split: Split) -> Block:
        """The first activations of a split, as many as are used, in one block."""
        if split not in self._held:
            stored, left = self._stored(split), self._n.get(split)
            parts = []
            for index, rows in enumerate(self._sizes(split)):
                parts.append(Block(*(values[:left] for values in stored.block(index))))
                if left is not None and (left := left - rows) <= 0:
                    break
            self._held[split] = Block(*(torch.cat(values) for values in zip(*parts, strict=True)))
        return self._held[split]

    def contexts(self, split: Split, positions: list[int]) -> list[Context]:
        """Where the activations at these positions of a split come from.

        Raises:
            ValueError: If the source of the harvest is none of this package's and no other was given.
        """
        if self._source is None:
            self._source = self._own_source()
        block = self._block(split)
        rows = torch.tensor(positions, dtype=torch.long)
        examples, starts, ends = (values[rows] for values in (block.examples, block.starts, block.ends))
        return contexts_of(self._source, examples, starts, ends, self._config["host"]["crop"])

    def _own_source(self) -> Source[Any] | StreamedSource[Any]:
        """The source of the harvest; a cache must not choose what else is run."""
        description = self._config["source"]
        path = description["class_path"]
        kind = getattr(sources, path.rpartition(".")[2], None)
        if kind is None or f"{kind.__module__}.{kind.__qualname__}" != path:
            raise ValueError(
                f"source must be given to show examples of {path}, which is none of this package's sources"
            )
        found: Source[Any] | StreamedSource[Any] = kind(**description["init_args"])
        return found


def _record_of(file: str) -> str:
    return f"shards/{Path(file).stem.removeprefix('chunk-')}.json"
