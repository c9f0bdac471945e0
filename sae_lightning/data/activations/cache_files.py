"""Names and integrity checks of the files of a cache."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_lightning.data.datamodule import SPLIT_SEEDS, Split

MANIFEST = "manifest.json"
RECORDS = "shards"
_REMOTE = ("s3://", "gs://", "r2://", "azure://", "hf://", "local:")
_NUMBER = r"(\d{6}|[1-9]\d{6,})"
_FOLDER = rf"(?!\.)[^/]+/({'|'.join(SPLIT_SEEDS)})"  # of a layer and split
_WRITTEN = re.compile(rf"manifest\.json|{RECORDS}/{_NUMBER}\.json|{_FOLDER}/(index\.json|chunk-{_NUMBER}\.bin)")
_UNFINISHED = re.compile(
    rf"\.work-{_NUMBER}(/.*)?|\.manifest\.json\.tmp|{RECORDS}/\.{_NUMBER}\.json\.tmp|{_FOLDER}/\.index\.json\.tmp"
)
_CHUNK = re.compile(rf"(?P<layer>[^/]+)/[^/]+/chunk-(?P<shard>{_NUMBER})\.bin")


def work_folder(shard: int) -> str:
    """Name of the temporary folder in which a shard is written before its files are moved to their final paths."""
    return f".work-{shard:06d}"


def record_file(shard: int) -> str:
    """Path of a shard's record, relative to the cache."""
    return f"{RECORDS}/{shard:06d}.json"


def chunk_file(layer: str, split: Split, shard: int) -> str:
    """Path of a shard's activations at a layer, relative to the cache."""
    return f"{layer}/{split}/chunk-{shard:06d}.bin"


def index_file(layer: str, split: Split) -> str:
    """Path of litdata's index of a layer and split, relative to the cache."""
    return f"{layer}/{split}/index.json"


def is_written(file: str) -> bool:
    """Whether a path, relative to the cache, is one of the final files of a harvest."""
    return _WRITTEN.fullmatch(file) is not None


def is_unfinished(file: str) -> bool:
    """Whether a path, relative to the cache, is a temporary file of an interrupted harvest."""
    return _UNFINISHED.fullmatch(file) is not None


def is_hidden(file: str) -> bool:
    """Whether a file or a folder in a path begins with a dot, such as the files of file managers."""
    return any(name.startswith(".") for name in file.split("/"))


def place_of(chunk: str) -> tuple[str, int] | None:
    """Return layer and shard of a chunk from its path, relative to the cache; None for other files.

    Example:
        >>> from sae_lightning.data.activations.cache_files import chunk_file, place_of
        >>> place_of(chunk_file("blocks.0", "train", 7))
        ('blocks.0', 7)
    """
    found = _CHUNK.fullmatch(chunk)
    return (found["layer"], int(found["shard"])) if found else None


def files_in(folder: Path) -> Iterator[str]:
    """Yield the relative paths of all files below a folder; symbolic links count as files and are not followed."""
    for root, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in [*files, *links]:
            yield os.path.relpath(os.path.join(root, name), folder).replace(os.sep, "/")


def is_remote(cache: str) -> bool:
    """Whether a cache is the address of an object store, from which litdata downloads."""
    return cache.startswith(_REMOTE)


def damaged(cache: Path | str, file: str, wrong: str) -> ValueError:
    """Return the error for a damaged file of a cache.

    Args:
        cache: The cache.
        file: Path of the file, relative to the cache.
        wrong: What is wrong, such as "is missing".
    """
    name = file if file.isprintable() else repr(file)
    return ValueError(f"cache {str(cache)!r} is damaged: {name} {wrong}. {_repair(str(cache), file)}")


def _repair(cache: str, file: str) -> str:
    if is_remote(cache):
        return "Delete litdata's local copies of the cache, and if that does not help upload it again"
    place = place_of(file)
    if place is not None:
        return f"Delete it with {record_file(place[1])} and harvest again, which writes only this shard"
    if file.startswith(f"{RECORDS}/"):
        return "Delete it and harvest again, which writes only this shard"
    if is_written(file):
        return "Delete it and harvest again, which writes only this file"
    return "Move it out of the folder"


def read_file(cache: Path | str, file: str) -> bytes:
    """Return the bytes of a small file of a cache.

    Raises:
        FileNotFoundError: If it is missing.
        ValueError: If it is a symbolic link or cannot be read.
    """
    try:
        if is_remote(str(cache)):
            return _download(str(cache), file)
        path = Path(cache, file)
        if path.is_symlink():
            raise damaged(cache, file, "is a symbolic link")
        if not path.is_file():
            raise FileNotFoundError(file)
        return path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise damaged(cache, file, f"cannot be read ({error.strerror or error})") from None


def _download(cache: str, file: str) -> bytes:
    from litdata.streaming.downloader import get_downloader

    with TemporaryDirectory() as folder:
        target = Path(folder, Path(file).name)
        get_downloader(cache, folder, []).download_file(f"{cache}/{file}", str(target))
        return target.read_bytes()


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def check_file(cache: Path | str, file: str, n_bytes: int | None = None, sha256: str | None = None) -> None:
    """Check the size and the checksum of a file of a cache.

    Args:
        cache: Folder of the cache.
        file: Path of the file, relative to the cache.
        n_bytes: Expected size; None skips this check.
        sha256: Expected checksum; None skips this check, which reads the file.

    Raises:
        ValueError: If the file is missing, a symbolic link, or of another size or checksum.
    """
    path = Path(cache, file)
    wrong = None
    try:
        if path.is_symlink():
            wrong = "is a symbolic link"
        elif not path.is_file():
            wrong = "is missing"
        elif n_bytes is not None and path.stat().st_size != n_bytes:
            wrong = f"has {path.stat().st_size} bytes instead of {n_bytes}"
        elif sha256 is not None and checksum(path) != sha256:
            wrong = "has another checksum than when it was written"
    except OSError as error:
        wrong = f"cannot be read ({error.strerror or error})"
    if wrong:
        raise damaged(cache, file, wrong)


def check_bytes(cache: str, file: str, data: bytes) -> None:
    """Check the content of a small file of a cache, which may lie in an object store.

    Raises:
        ValueError: If it is missing or its content is not `data`.
    """
    try:
        found = read_file(cache, file)
    except FileNotFoundError:
        raise damaged(cache, file, "is missing") from None
    if found != data:
        raise damaged(cache, file, "differs from the one that was written")
