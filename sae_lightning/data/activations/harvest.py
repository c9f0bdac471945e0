"""Harvesting: write the activations of a host model on a source to a cache."""

import errno
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sae_lightning.data.activations.cache import CacheWriter
from sae_lightning.data.activations.manifest import read_manifest
from sae_lightning.data.activations.reading import Prepared, WindowReader
from sae_lightning.nn.parts import Recorded
from sae_lightning.run.files import WriteError


class Harvest:
    """Writes the activations of a reader to a cache, one shard per window; resumes an interrupted harvest.

    Shards are independent: existing shards are kept, and several devices can share the others.

    Args:
        reader: Reads the activations.
        output: Folder of the cache.
        max_samples: Stop after the shard with which the number of activations, over all splits, reaches this value;
            None reads all examples.
        devices: Devices that share the work, such as `[cuda:0, cuda:1]`; each holds a copy of the model. None takes the
            first GPU, or the CPU if there is none.

    Raises:
        ValueError: If an argument is out of range, a device is missing, or the folder holds anything but this harvest.
    """

    def __init__(
        self, reader: WindowReader, output: Path, max_samples: int | None = None, devices: list[str] | None = None
    ) -> None:
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"max_samples must be at least 1, but is {max_samples}")
        self.reader = reader
        self.max_samples = max_samples
        self.devices = [checked_device(name) for name in devices or [_default_device()]]
        self.writer = CacheWriter(output, describe(reader, max_samples), reader.source.concept_names)

    def run(self) -> dict[str, Any]:
        """Write the missing shards and the manifest.

        Returns:
            The manifest.

        Raises:
            WriteError: If the folder cannot be written, or the disk is full; the shards written so far stay valid.
        """
        done = _Progress(self.writer, self.reader.n_windows, self.max_samples, self.reader.host.unit)
        try:
            if not done.finished:
                if len(self.devices) == 1:
                    windows = count() if done.n_windows is None else range(done.n_windows)
                    finished = partial(getattr, done, "finished")
                    _work(self.reader, self.writer, self.devices[0], windows, finished, done.advance, done.limited)
                else:
                    _share(self.reader, self.writer, self.devices, done)
        except OSError as error:
            with suppress(OSError):  # if the disk has no room for the manifest either, the previous one stays
                self.writer.finish(complete=False, n_shards=done.n_leading)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO):
                raise WriteError("the cache", self.writer.folder, error) from error
            raise
        except BaseException:
            self.writer.finish(complete=False, n_shards=done.n_leading)
            raise
        finally:
            done.close()
        self.writer.finish(complete=True, n_shards=done.n_leading)
        return read_manifest(self.writer.folder)


class _Progress:
    """Counts the written shards and samples, and shows a progress bar.

    Args:
        writer: Writes the shards.
        n_windows: Number of windows; None if unknown.
        max_samples: Number of samples after which to stop; None for all.
        counted: Unit of the model's input, such as tokens.
    """

    def __init__(self, writer: CacheWriter, n_windows: int | None, max_samples: int | None, counted: str) -> None:
        from tqdm import tqdm

        self._writer = writer
        self.n_windows = n_windows
        self._max_samples = max_samples
        self._counted = counted
        self.n_leading = 0  # shards before the first missing one
        self.n_samples = 0
        self._tokens = 0
        self._begin: float | None = None
        self._bar = tqdm(
            total=max_samples or n_windows,
            unit=" samples" if max_samples else " shards",
            unit_scale=max_samples is not None,
            desc="harvest",
            file=sys.stderr,
            smoothing=0.1,
        )
        self.advance()
        self._bar.initial = self._bar.n
        self._bar.refresh()
        self._tokens, self._begin = 0, time.perf_counter()

    @property
    def limited(self) -> bool:
        """Whether a maximum number of samples was given."""
        return self._max_samples is not None

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return (self.n_windows is not None and self.n_leading >= self.n_windows) or (
            self._max_samples is not None and self.n_samples >= self._max_samples
        )

    def advance(self) -> None:
        """Count the shards that have been written since the last call."""
        while not self.finished:
            record = self._writer.record(self.n_leading)
            if record is None:
                return
            self.n_leading += 1
            self._tokens += record["tokens"]
            n = sum(sum(numbers) for numbers in record["counts"].values())
            self.n_samples += n
            if self._begin is not None:  # the speed of this run excludes shards of an earlier one
                rate = self._tokens / (time.perf_counter() - self._begin)
                self._bar.set_postfix_str(f"{rate:,.0f} {self._counted}/s")
            self._bar.update(n if self.limited else 1)

    def close(self) -> None:
        """Close the progress bar."""
        self._bar.close()


def _work(
    reader: WindowReader,
    writer: CacheWriter,
    device: str,
    windows: Iterable[int],
    enough: Callable[[], bool],
    report: Callable[[], None],
    limited: bool,
) -> None:
    """Write missing shards; two threads tokenize the next window and write the previous one meanwhile."""
    reader.host.model.to(device)
    with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
        writing: Future[dict[str, Any]] | None = None
        for prepared in _prepared(reader, (w for w in windows if writer.record(w) is None), ahead):
            if writing is not None and limited:  # the previous shard may already hold enough samples
                writing.result()
                report()
                writing = None
            if enough():
                break
            reads = reader.read(prepared)
            if writing is not None:
                writing.result()
                report()
            facts = {
                "examples": len(prepared.indices) + len(prepared.skipped),
                "tokens": prepared.n_tokens,
                "skipped": prepared.skipped,
                "unaligned": prepared.unaligned,
            }
            writing = behind.submit(writer.write, prepared.window, reads, **facts)
        if writing is not None:
            writing.result()
            report()


def _prepared(reader: WindowReader, windows: Iterator[int], ahead: ThreadPoolExecutor) -> Iterator[Prepared]:
    """Yield windows until the source ends, each prepared while the previous one is used."""
    waiting: Future[Prepared | None] | None = None
    while True:
        window = next(windows, None)
        following = None if window is None else ahead.submit(reader.prepare, window)
        if waiting is not None:
            prepared = waiting.result()
            if prepared is None:
                return
            yield prepared
        if following is None:
            return
        waiting = following


_stop: Any = None  # in a worker process: the event that requests its end


def _share(reader: WindowReader, writer: CacheWriter, devices: list[str], progress: _Progress) -> None:
    """Start one process per device, each of which writes every n-th shard."""
    context = get_context("spawn")
    stop = context.Event()
    with ProcessPoolExecutor(len(devices), context, initializer=_inherit, initargs=(stop,)) as pool:
        try:
            running = {
                pool.submit(_work_in_process, reader, writer, devices, rank, progress.n_windows, progress.limited)
                for rank in range(len(devices))
            }
            while running:
                ended, running = wait(running, timeout=0.2)
                progress.advance()
                if progress.finished:
                    stop.set()
                for worker in ended:
                    worker.result()
        finally:
            stop.set()


def _inherit(stop: Any) -> None:
    global _stop  # noqa: PLW0603  (an event can only be passed to a process at its start)
    _stop = stop


def _work_in_process(
    reader: WindowReader, writer: CacheWriter, devices: list[str], rank: int, n_windows: int | None, limited: bool
) -> None:
    """Write the shards of one device."""
    if devices[rank] == "cpu":
        torch.set_num_threads(max(1, torch.get_num_threads() // len(devices)))
    windows = count(rank, len(devices)) if n_windows is None else range(rank, n_windows, len(devices))
    _work(reader, writer, devices[rank], windows, _stop.is_set, lambda: None, limited)


def describe(reader: WindowReader, max_samples: int | None) -> dict[str, Any]:
    """Return the configuration of a harvest in plain values; a run can resume a cache only if it is equal."""
    settings = {
        key: value for key, value in reader.init_args.items() if key not in ("host", "source", "layers", "batch_size")
    }
    config = {
        "host": {**reader.host.describe(), "crop": None if reader.host.crop is None else float(reader.host.crop)},
        "source": reader.source.describe(),
        "layers": reader.layers,
        "batch_size": reader.batch_size,
        **settings,
        "max_samples": max_samples,
    }
    plain: dict[str, Any] = _plain(config)
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)  # JSON has no such numbers
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Recorded):
        return _plain(value.describe())
    cls = value if isinstance(value, type) else type(value)
    described = f"{cls.__module__}.{cls.__qualname__}"
    return f"{described}: {value}" if isinstance(value, nn.Module) else described


def _default_device() -> str:
    return str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"


def checked_device(name: str) -> str:
    """Return a device's name if the device is available.

    Raises:
        ValueError: If it is not.
    """
    try:
        torch.zeros(1, device=name)
    except Exception as error:  # each backend raises other types
        raise ValueError(f"devices must be devices of this machine, but {name!r} is not available: {error}") from None
    return name
