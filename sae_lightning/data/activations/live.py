"""Activations computed during training, for models and data whose activations are too large to store."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sae_lightning.data.activations.hosts import Host
from sae_lightning.data.activations.hosts.base import Read
from sae_lightning.data.activations.places import contexts_of
from sae_lightning.data.activations.reading import WindowReader
from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.contexts import Context
from sae_lightning.data.datamodule import ActivationDataModule, Split
from sae_lightning.data.loading import ActivationDataset, ActivationLoader, BatchSequence
from sae_lightning.data.sources import Source, StreamedSource

_PATIENCE = 100  # consecutive windows of a stream without a full batch before an error is raised


class WindowBatches(Dataset[ActivationBatch]):
    """Training batches of a rank, indexed by (window, batch within the window).

    The shuffled activations of one window are kept in memory until another window is read. Window numbers beyond the
    end of the source start again at its first window, in a new shuffle.

    Args:
        reader: Reads windows.
        batch_size: Activations per batch.
    """

    def __init__(self, reader: WindowReader, batch_size: int) -> None:
        self.reader = reader
        self.batch_size = batch_size
        self._held: tuple[int, Tensor, Tensor] | None = None

    def n_batches(self, window: int) -> int:
        """Number of full batches in a window; the incomplete last one is dropped."""
        return len(self._window(window)[1]) // self.batch_size

    def following(self, window: int, step: int) -> int:
        """Return the first of the windows `window`, `window + step`, ... that holds a full batch.

        The last window of a source may be too small for one.

        Raises:
            ValueError: If no window holds a full batch.
        """
        for number in range(window, window + step * (1 + (self.reader.n_windows or _PATIENCE)), step):
            if self.n_batches(number):
                return number
        raise ValueError(
            f"window_size must give at least one batch of {self.batch_size} training activations, but no window of "
            f"{self.reader.window_size} examples does"
        )

    def __getitem__(self, place: tuple[int, int]) -> ActivationBatch:
        window, batch = place
        _, activations, concepts = self._window(window)
        rows = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
        return ActivationBatch(activations[rows], concepts[rows])

    def _window(self, window: int) -> tuple[int, Tensor, Tensor]:
        if self._held is None or self._held[0] != window:
            self._held = None  # frees the memory before the next window is read
            layer = self.reader.layers[0]
            read = self.reader.window(window, "train")
            if read is None:
                empty = torch.empty(0)
                self._held = window, empty, empty
            else:
                self._held = window, read.activations[layer], read.concepts
        return self._held


class WindowSteps(BatchSequence):
    """Sampler of the (window, batch) indices of a rank's batches; its state holds those of the next batch.

    Args:
        batches: The batches.
        steps_per_epoch: Batches per epoch.
        rank: Rank of this process, which reads every `world_size`-th window.
        world_size: Number of processes.
    """

    def __init__(self, batches: WindowBatches, steps_per_epoch: int, rank: int, world_size: int) -> None:
        super().__init__(batches.batch_size * world_size)
        self._batches = batches
        self._steps_per_epoch = steps_per_epoch
        self._rank = rank
        self._world_size = world_size
        self._places = {0: (rank, 0)}  # (window, batch) of upcoming batches by position

    def __len__(self) -> int:
        return self._steps_per_epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        known = max(position for position in self._places if position <= self.position)
        for position in range(known, self.position + len(self)):
            window, batch = self._places[position]
            if batch >= self._batches.n_batches(window):
                window, batch = self._batches.following(window + self._world_size, self._world_size), 0
            self._places[position + 1] = (window, batch + 1)
            if position >= self.position:
                self._forget()
                yield window, batch

    def _forget(self) -> None:
        for position in [position for position in self._places if 0 < position < self.position]:
            del self._places[position]

    def state_dict(self) -> dict[str, Any]:
        """Return the position, and the window and batch index of the next batch."""
        window, batch = self._places[self.position]
        place = {"window": window, "batch": batch, "batch_size": self._batches.batch_size}
        return {**super().state_dict(), **place}

    def resume(self, state: dict[str, Any]) -> None:
        """Resume at the next batch.

        With another number of processes, training resumes after all windows that any process had begun. With another
        batch size, it resumes at the first of the window's new batches that holds unseen samples only.
        """
        self.position = state["position"]
        if "ranks" in state:
            begun = max(rank["window"] for rank in state["ranks"])
            self._places = {0: (self._rank, 0), self.position: (begun + 1 + self._rank, 0)}
            return
        samples = state["batch"] * state["batch_size"]
        self._places[self.position] = (state["window"], -(-samples // self._batches.batch_size))


class LiveDataModule(ActivationDataModule):
    """Activations of a model, computed during training and shuffled within a window of examples.

    A window holds examples in random order. Its activations are shuffled and used up before the next window is read.
    Documents or images are assigned to splits as in a harvest. Validation and test activations are computed once.

    Args:
        host: Model whose activations are read.
        source: Texts or images that the model reads.
        layer: Name of the layer.
        window_size: Examples (texts or images) per window.
        host_batch_size: Maximum number of tokens (padding included) or images per forward pass; None takes the host's
            default.
        keep: Names of the concepts whose activations are used; None uses all activations.
        unreadable: Whether an example that cannot be read ends the run (refuse) or is skipped.
        val_fraction: Fraction of the documents for validation.
        test_fraction: Fraction of the documents for test.
        n_train: Training activations that count as an epoch.
        n_val: Maximum number of held-out activations for validation.
        n_test: Maximum number of held-out activations for test and prediction.
        batch_size: Training activations per step and process, at least 1.
        eval_batch_size: Activations per step and process in validation, test and prediction, at least 1.
        seed: Seed of order, splits and shuffling; None takes the global seed.

    Raises:
        ValueError: If an argument is out of range, the model lacks the layer, or the source is empty.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> from sae_lightning import LiveDataModule
        >>> from sae_lightning.data.activations.hosts import ModuleHost
        >>> from sae_lightning.data.sources import ImageExample, Source
        >>> class Grays(Source):
        ...     concept_names = []
        ...     def __len__(self):
        ...         return 100
        ...     def __getitem__(self, index):
        ...         return ImageExample(f"{index}.png", Image.new("L", (2, 2), index))
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 8))
        >>> data = LiveDataModule(ModuleHost(model, image_size=2, channels=1), Grays(), "1", batch_size=16, n_train=64)
        >>> next(iter(data.train_dataloader())).activations.shape
        torch.Size([16, 8])
    """

    def __init__(
        self,
        host: Host,  # type: ignore[type-arg]
        source: Source | StreamedSource,  # type: ignore[type-arg]
        layer: str,
        window_size: int = 1024,
        host_batch_size: int | None = None,
        keep: list[str] | None = None,
        unreadable: Literal["refuse", "skip"] = "refuse",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        n_train: int = 1_024_000,
        n_val: int = 8_192,
        n_test: int = 16_384,
        batch_size: int = 1024,
        eval_batch_size: int = 4096,
        seed: int | None = None,
    ) -> None:
        for name, value in {"n_train": n_train, "n_val": n_val, "n_test": n_test}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        for name, share in {"val_fraction": val_fraction, "test_fraction": test_fraction}.items():
            if share <= 0:
                raise ValueError(f"{name} must be above 0, but is {share}")
        self._reader = WindowReader(
            host,
            source,
            [layer],
            window_size,
            host_batch_size,
            "float32",
            keep,
            unreadable,
            val_fraction,
            test_fraction,
        )
        d_in = WindowReader(host, source, [layer], 1, unreadable="skip").d_in(layer)
        super().__init__(d_in, source.concept_names, batch_size, eval_batch_size, seed)
        self._reader.seed = self.seed
        self._layer = layer
        self._n_train = n_train
        self._n_held_out: dict[Split, int] = {"val": n_val, "test": n_test}
        self._reads: dict[Split, Read] = {}

    def setup(self, stage: str | None = None) -> None:
        """Broadcast the seed of rank 0, and move the model to the SAE's device."""
        super().setup(stage)
        self._reader.seed = self.seed
        if self.trainer is not None:
            self._reader.host.model.to(self.trainer.strategy.root_device)

    def train_dataloader(self) -> ActivationLoader:
        """Return a loader of training batches, window by window."""
        batches = WindowBatches(self._reader, self.batch_size)
        steps = WindowSteps(batches, self._steps_per_epoch(self._n_train), *self._processes())
        return ActivationLoader.of(batches, steps, pin_memory=torch.cuda.is_available())

    def make_split(self, split: Split) -> ActivationDataset:
        """Read windows until the split is complete.

        Raises:
            ValueError: If it is the training split, which is never held in memory, or no document belongs to it.
        """
        if split == "train":
            raise ValueError(
                "split must be 'val' or 'test' for data computed during training; read train_dataloader() instead"
            )
        self._reads[split] = read = self._reader.gather(split, self._n_held_out[split])
        return ActivationDataset(read.activations[self._layer], read.concepts)

    def contexts(self, split: Split, positions: list[int]) -> list[Context]:
        """Return the contexts of the activations at these positions of a split."""
        self.split(split)
        read, rows = self._reads[split], torch.tensor(positions, dtype=torch.long)
        examples, starts, ends = (values[rows] for values in (read.examples, read.starts, read.ends))
        return contexts_of(self._reader.source, examples, starts, ends, self._reader.host.crop)
