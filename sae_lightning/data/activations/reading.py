"""Read a host model's activations on the examples of a source, window by window."""

from collections.abc import Iterator, Sequence
from hashlib import blake2b
from itertools import count
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from sae_lightning.data.activations.hosts.base import Host, Piece, Read
from sae_lightning.data.datamodule import SPLIT_SEEDS, Split, require_distinct
from sae_lightning.data.seeding import seeded_generator
from sae_lightning.data.sources.base import ImageExample, Source, StreamedSource, TextExample, UnreadableError
from sae_lightning.nn.parts import Recorded

_ORDER, _MIX = 2000, 2001  # separate the random streams of order and shuffling from others


class Prepared(NamedTuple):
    """A window of examples, tokenized for the model."""

    window: int
    """Number of the window."""
    indices: list[int]
    """Index of each example in the source."""
    splits: list[Split]
    """Split of each example."""
    batches: list[list[Piece]]
    """Inputs of the model, in batches of similar length; `Piece.example` is an index into `indices`."""
    skipped: list[str]
    """Documents that could not be read."""
    unaligned: int
    """Number of labeled words without a token."""

    @property
    def n_tokens(self) -> int:
        """Number of tokens or images that the model reads, without padding."""
        return sum(piece.length for batch in self.batches for piece in batch)


class WindowReader(Recorded):
    """Reads activations in windows of examples, and shuffles each window.

    Examples are visited in random order (except for streams, which have their own), so that a window is a random sample
    of the source. The activations of a window depend on its number only. A document's split depends on a hash of its
    name and the seed.

    Args:
        host: The model.
        source: The examples.
        layers: Names of the layers, read in one forward pass.
        window_size: Examples per window, at least 1.
        batch_size: Maximum number of tokens (padding included) or images per forward pass; None takes the host's
            default.
        dtype: Type of the activations.
        keep: Names of the concepts whose activations are kept; None keeps all, including unlabeled ones.
        unreadable: Whether an example that cannot be read ends the run (refuse) or is skipped.
        val_fraction: Fraction of the documents for validation.
        test_fraction: Fraction of the documents for test.
        seed: Seed of the order, the splits and the shuffling.

    Raises:
        ValueError: If an argument is out of range, or the model lacks a layer.
    """

    def __init__(
        self,
        host: Host[Any],
        source: Source[Any] | StreamedSource[Any],
        layers: Sequence[str],
        window_size: int = 1024,
        batch_size: int | None = None,
        dtype: Literal["float32", "float16", "bfloat16"] = "float32",
        keep: list[str] | None = None,
        unreadable: Literal["refuse", "skip"] = "refuse",
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        seed: int = 0,
    ) -> None:
        host.check(layers)
        batch_size = host.batch_size if batch_size is None else batch_size
        for name, value in {"window_size": window_size, "batch_size": batch_size}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        for name, share in {"val_fraction": val_fraction, "test_fraction": test_fraction}.items():
            if not 0 <= share < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, but is {share}")
        if val_fraction + test_fraction >= 1:
            raise ValueError(
                f"val_fraction and test_fraction must leave something for training, but are {val_fraction} and "
                f"{test_fraction}"
            )
        require_distinct(source.concept_names)
        unknown = [name for name in keep or [] if name not in source.concept_names]
        if unknown:
            raise ValueError(f"keep must name concepts of the source, {source.concept_names}, but names {unknown[0]!r}")
        if isinstance(source, Source) and len(source) == 0:
            raise ValueError("source must hold an example, but is empty")
        self.host = host
        self.source = source
        self.layers = list(dict.fromkeys(layers))
        self.window_size = window_size
        self.batch_size = batch_size
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.unreadable = unreadable
        self.seed = seed
        self._bounds = (val_fraction, val_fraction + test_fraction)
        self._kept = None if keep is None else torch.tensor([source.concept_names.index(name) for name in keep])
        self._order: Tensor | None = None
        self._n_streamed: int | None = None  # windows of a stream, known once it has been read to its end
        self._stream: tuple[int, Iterator[Any]] | None = None  # an open stream and the index of its next example

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open stream, which is reopened on use."""
        return {**self.__dict__, "_stream": None}

    @property
    def n_windows(self) -> int | None:
        """Number of windows; None for a stream."""
        return -(-len(self.source) // self.window_size) if isinstance(self.source, Source) else None

    def split_of(self, document: str) -> Split:
        """Return the split that a document belongs to."""
        digest = blake2b(f"{self.seed}:{document}".encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64
        return "val" if place < self._bounds[0] else "test" if place < self._bounds[1] else "train"

    def prepare(self, window: int, only: Split | None = None) -> Prepared | None:
        """Read and tokenize the examples of a window.

        Args:
            window: Number of the window.
            only: Split to read; None reads all splits.

        Returns:
            The window; None after the last one.

        Raises:
            UnreadableError: If an example cannot be read and `unreadable` is "refuse".
        """
        found, skipped = [], []
        before = self.host.unaligned
        empty = True
        for index, example in self._examples(window):
            empty = False
            if isinstance(example, UnreadableError):
                if self.unreadable == "refuse":
                    raise example
                skipped.append(example.document)
            elif only is None or self.split_of(example.document) == only:
                found.append((index, example))
        if empty:
            return None
        pieces = self.host.pieces([example for _, example in found])
        return Prepared(
            window,
            [index for index, _ in found],
            [self.split_of(example.document) for _, example in found],
            _batches(pieces, self.batch_size),
            skipped,
            self.host.unaligned - before,
        )

    def read(self, prepared: Prepared) -> dict[Split, Read]:
        """Return the activations of a window by split, in random order; splits without activations are left out.

        Raises:
            ValueError: If an activation is not finite in `dtype`.
        """
        parts = [self.host.read(batch, self.layers, self.dtype) for batch in prepared.batches]
        if not parts:
            return {}
        whole = _joined(parts, self.layers)
        for layer, x in whole.activations.items():
            bad = int((~x.isfinite().all(1)).sum())
            if bad:
                raise ValueError(
                    f"activations must be finite in {self.dtype}, but {bad} of {len(x)} at {layer!r} are not "
                    f"(window {prepared.window}): choose another dtype"
                )
        split_of = torch.tensor([SPLIT_SEEDS[split] for split in prepared.splits])[whole.examples]
        whole = whole._replace(examples=torch.tensor(prepared.indices)[whole.examples])
        wanted = torch.ones_like(split_of, dtype=torch.bool)
        if self._kept is not None:
            wanted = torch.isin(whole.concepts, self._kept)
        found: dict[Split, Read] = {}
        for split, number in SPLIT_SEEDS.items():
            rows = (wanted & (split_of == number)).nonzero()[:, 0]
            if len(rows):
                mix = torch.randperm(len(rows), generator=seeded_generator(self.seed, _MIX, prepared.window, number))
                found[split] = _rows(whole, rows[mix])
        return found

    def window(self, window: int, split: Split) -> Read | None:
        """Return a window's activations for one split, or None if there are none.

        Window numbers beyond the end of the source start again at its first window, in a new shuffle.

        Raises:
            ValueError: If the source holds no example.
        """
        if self._n_streamed is not None:
            window_of_source = window % self._n_streamed
        else:
            window_of_source = window if self.n_windows is None else window % self.n_windows
        prepared = self.prepare(window_of_source, only=split)
        if prepared is None:  # the end of a stream
            if window_of_source == 0:
                raise ValueError("source must hold an example, but is empty")
            # a resumed run may request a window far beyond the end
            while window_of_source > 1 and next(self._examples(window_of_source - 1), None) is None:
                window_of_source -= 1
            self._n_streamed = window_of_source
            return self.window(window, split)
        _tell(prepared)
        return self.read(prepared._replace(window=window)).get(split)

    def d_in(self, layer: str) -> int:
        """Return the number of features at a layer, from the first example that can be read.

        Raises:
            ValueError: If no example can be read.
        """
        for window in count():
            prepared = self.prepare(window)
            if prepared is None:
                raise ValueError("source must hold an example that can be read, but holds none")
            if prepared.batches:
                piece = prepared.batches[0][:1]
                return self.host.read(piece, [layer], self.dtype).activations[layer].shape[1]
        raise AssertionError

    def gather(self, split: Split, n: int) -> Read:
        """Return the first `n` activations of a split, or all if there are fewer.

        Raises:
            ValueError: If there are none.
        """
        parts: list[Read] = []
        window, missing = 0, n
        while missing > 0 and (prepared := self.prepare(window, only=split)) is not None:
            window += 1
            _tell(prepared)
            part = self.read(prepared).get(split)
            if part is not None:
                parts.append(part)
                missing -= len(part.concepts)
        if not parts:
            raise ValueError(
                f"every split must hold an activation, but {split!r} holds none: are there too few documents?"
            )
        return _rows(_joined(parts, self.layers), torch.arange(n - max(0, missing)))

    def _examples(self, window: int) -> Iterator[tuple[int, TextExample | ImageExample | UnreadableError]]:
        start = window * self.window_size
        if isinstance(self.source, StreamedSource):
            if self._stream is None or self._stream[0] != start:
                self._stream = start, iter(self.source.read(start))
            examples = self._stream[1]
            for index in range(start, start + self.window_size):
                example = next(examples, None)
                if example is None:
                    return
                self._stream = index + 1, examples
                yield index, example
            return
        if self._order is None:
            generator = seeded_generator(self.seed, _ORDER)
            self._order = torch.randperm(len(self.source), generator=generator)
        for index in self._order[start : start + self.window_size].tolist():
            try:
                yield index, self.source[index]
            except UnreadableError as error:
                yield index, error


def _tell(prepared: Prepared) -> None:
    if prepared.skipped:
        rank_zero_warn(
            f"{len(prepared.skipped)} examples of window {prepared.window} cannot be read and are skipped: "
            f"{', '.join(prepared.skipped[:5])}{', ...' if len(prepared.skipped) > 5 else ''}"
        )


def _batches(pieces: list[Piece], batch_size: int) -> list[list[Piece]]:
    """Group pieces of similar length into batches of at most `batch_size` tokens, padding included."""
    batches: list[list[Piece]] = []
    longest = 0
    for piece in sorted(pieces, key=lambda piece: piece.length):  # stable sort: deterministic for a window
        longest = max(longest, piece.length)
        if not batches or longest * (len(batches[-1]) + 1) > batch_size:
            batches.append([])
            longest = piece.length
        batches[-1].append(piece)
    return batches


def _joined(parts: list[Read], layers: list[str]) -> Read:
    activations = {layer: torch.cat([part.activations[layer] for part in parts]) for layer in layers}
    rest = (torch.cat(values) for values in zip(*(part[1:] for part in parts), strict=True))
    return Read(activations, *rest)


def _rows(read: Read, rows: Tensor) -> Read:
    activations = {layer: x[rows] for layer, x in read.activations.items()}
    return Read(activations, *(values[rows] for values in read[1:]))
