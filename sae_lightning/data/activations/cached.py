"""Data module of activations from a cache written by `sae-lightning harvest`."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from sae_lightning.data import sources
from sae_lightning.data.activations.blocks import DTYPES, Block
from sae_lightning.data.activations.cache_files import (
    MANIFEST,
    check_file,
    damaged,
    files_in,
    is_hidden,
    is_remote,
    is_written,
    record_file,
)
from sae_lightning.data.activations.manifest import files_of, read_manifest
from sae_lightning.data.activations.places import contexts_of
from sae_lightning.data.activations.stored import CachedActivations
from sae_lightning.data.contexts import Context
from sae_lightning.data.datamodule import SPLIT_SEEDS, ActivationDataModule, Split
from sae_lightning.data.loading import ActivationDataset, ActivationLoader, BatchSequence
from sae_lightning.data.seeding import seeded_generator
from sae_lightning.data.sources import Source, StreamedSource
from sae_lightning.moved import current_path

_ORDER = 3000  # separates the random streams of the order from others


class BlockOrder(BatchSequence):
    """Sampler that reads all blocks of a cache in a new random order every epoch, and cuts them into batches.

    A batch is a list of (block, first row, one past the last row). The ranks' batches of a step are consecutive.

    Args:
        sizes: Number of rows of each block.
        batch_size: Rows per batch and rank, at least 1.
        rank: Rank of this process.
        world_size: Number of processes.
        seed: Seed of the order.

    Example:
        >>> from sae_lightning.data.activations.cached import BlockOrder
        >>> list(BlockOrder([6], batch_size=2, rank=1, world_size=2, seed=0))
        [[(0, 2, 4)]]
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


class CachedDataModule(ActivationDataModule):
    """Activations written by `sae-lightning harvest`, read from disk during training.

    The cache holds shuffled blocks, which are read in a new order every epoch. Splits are those of the harvest, by
    document or image. Validation and test activations are held in memory.

    Args:
        cache: Folder of the cache, or its address in an object store (s3://, gs://, ...), from which litdata downloads.
        layer: Name of one of its layers; None if there is just one.
        model: Name or path of the model that the cache must be of; None accepts any.
        n_val: Maximum number of validation activations; None uses all.
        n_test: Maximum number of test activations; None uses all.
        verify: Whether to verify the checksums of the activations: all of them before training, or in an object store
            each block when it is read. Everything else is always checked.
        allow_incomplete: Whether to accept a cache whose harvest was interrupted.
        source: Source of the examples, for display; None takes that of the harvest, if it is one of this package's.
        batch_size: Training activations per step and process, at least 1.
        eval_batch_size: Activations per step and process in validation, test and prediction, at least 1.
        num_workers: Worker processes that read ahead; 0 reads in a thread, which is faster from a local disk.
        seed: Seed of the order; None takes the global seed.

    Raises:
        ValueError: If the cache or the layer does not exist, the cache is of another model, incomplete or damaged, or a
            split is empty.
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
                f"cache must be complete, but the harvest of {cache!r} was interrupted: run `sae-lightning harvest` "
                "again, or set allow_incomplete = true"
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
        for split in SPLIT_SEEDS:
            if split not in self._chunks:
                raise ValueError(f"every split must hold an activation, but {split!r} of {cache!r} holds none")
        self._cache = cache.rstrip("/")
        self._layer = layer
        self._manifest = manifest
        self._n: dict[Split, int | None] = {"val": n_val, "test": n_test}
        self._source = source
        self._verify = verify
        self._verified = False
        self._held: dict[Split, Block] = {}
        self.num_workers = num_workers

    def setup(self, stage: str | None = None) -> None:
        """Broadcast the seed of rank 0, and verify the files.

        Raises:
            ValueError: If a file is missing or damaged; the message names it.
        """
        super().setup(stage)
        self._verify_files()

    def _verify_files(self) -> None:
        """Verify, once, the files of the layer and all records."""
        if self._verified:
            return
        if not is_remote(self._cache):
            self._verify_folder()
        for split in SPLIT_SEEDS:
            self._activations(split).check_index()
        self._verified = True

    def _verify_folder(self) -> None:
        folder, listed = Path(self._cache), files_of(self._manifest)
        for file in sorted(set(files_in(folder)) - listed):
            unlisted = is_written(file) and not self._manifest["complete"]  # by a harvest that was interrupted
            if not is_hidden(file) and not unlisted:
                raise damaged(folder, file, "was not written by the harvest")
        for shard, sha256 in enumerate(self._manifest["shards"]):
            check_file(folder, record_file(shard), sha256=sha256)
        for chunk in (chunk for chunks in self._chunks.values() for chunk in chunks):
            check_file(folder, chunk["file"], chunk["bytes"], chunk["sha256"] if self._verify else None)

    def _activations(self, split: Split) -> CachedActivations:
        remote = is_remote(self._cache)
        return CachedActivations(
            self._cache,
            self._layer,
            split,
            self._chunks[split],
            self.d_in,
            DTYPES[self._manifest["config"]["dtype"]],
            self.n_concepts,
            verify=remote and self._verify,
        )

    def _stored(self, split: Split) -> CachedActivations:
        self._verify_files()
        return self._activations(split)

    def _sizes(self, split: Split) -> list[int]:
        return [rows for chunk in self._chunks[split] for rows in chunk["rows"]]

    def train_dataloader(self) -> ActivationLoader:
        """Return a loader of training batches from disk; the incomplete last batch of an epoch is dropped."""
        sizes = self._sizes("train")
        self._steps_per_epoch(sum(sizes))  # raises if the split is smaller than one batch
        order = BlockOrder(sizes, self.batch_size, *self._processes(), self.seed)
        return ActivationLoader.of(
            self._stored("train"), order, pin_memory=torch.cuda.is_available(), num_workers=self.num_workers
        )

    def make_split(self, split: Split) -> ActivationDataset:
        """Read a whole split."""
        block = self._block(split)
        return ActivationDataset(block.activations.float(), block.concepts)

    def _block(self, split: Split) -> Block:
        """Return the used activations of a split (the first `n_val` or `n_test`) in one block."""
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
        """Return the contexts of the activations at these positions of a split.

        Raises:
            ValueError: If the source of the harvest is not one of this package's, and `source` was not given.
        """
        if self._source is None:
            self._source = self._own_source()
        block = self._block(split)
        rows = torch.tensor(positions, dtype=torch.long)
        examples, starts, ends = (values[rows] for values in (block.examples, block.starts, block.ends))
        return contexts_of(self._source, examples, starts, ends, self._manifest["config"]["host"]["crop"])

    def _own_source(self) -> Source[Any] | StreamedSource[Any]:
        """Build the source of the harvest; only classes of this package, as the cache may be untrusted."""
        description = self._manifest["config"]["source"]
        path = current_path(description["class_path"])
        kind = getattr(sources, path.rpartition(".")[2], None)
        own = isinstance(kind, type) and issubclass(kind, Source | StreamedSource)
        if kind is None or not own or f"{kind.__module__}.{kind.__qualname__}" != path:
            raise ValueError(
                f"source must be given to show examples of {path}, which is not one of this package's sources"
            )
        try:
            found: Source[Any] | StreamedSource[Any] = kind(**description["init_args"])
        except TypeError as error:
            raise damaged(self._cache, MANIFEST, f"is not valid (config.source: {error})") from None
        return found
