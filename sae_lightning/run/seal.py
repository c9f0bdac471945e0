"""A checksum within the file that it protects: one changed bit anywhere is found."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

KEY = "sae_lightning_sha256"
UNSEALED = "0" * 64
"""What a file holds under `KEY` before it is sealed, and what its checksum is computed with."""

_SEAL = re.compile(rb'"' + KEY.encode() + rb'": ?"([0-9a-f]{64})"')
_PIECE = 2**20


def write_sealed(file: IO[bytes], content: bytes, within: int | None = None) -> None:
    """Write content whose `KEY` is `UNSEALED`, with its checksum in that place.

    Args:
        file: A file that is open for writing.
        content: What to write: JSON, or a format with a JSON header.
        within: Number of bytes at the start among which the seal lies; None for all.
    """
    begin, end = _place(content[:within])
    view = memoryview(content)
    file.write(view[:begin])
    file.write(hashlib.sha256(content).hexdigest().encode())
    file.write(view[end:])


def check_seal(path: Path, within: int | None = None) -> None:
    """Compare the checksum of a sealed file.

    Args:
        path: The file.
        within: Number of bytes at the start among which the seal lies; None for all.

    Raises:
        ValueError: If the file holds no seal, or another one than its content has.
    """
    with path.open("rb") as file:
        _check(file, within)


def seal_json(content: Mapping[str, Any]) -> bytes:
    """A sealed JSON file.

    Args:
        content: Plain values by name; no number is infinite or NaN.

    Raises:
        ValueError: If a number is not finite, which JSON cannot hold.
    """
    file = BytesIO()
    write_sealed(file, json.dumps({KEY: UNSEALED, **content}, indent=1, allow_nan=False).encode())
    return file.getvalue()


def unseal_json(data: bytes) -> dict[str, Any]:
    """The content of a sealed JSON file.

    The checksum protects from damage, not from forgers, who can compute it too: check what the file says.

    Args:
        data: The file's bytes.

    Raises:
        ValueError: If the file holds no seal, another one than its content has, or no JSON.
    """
    _check(BytesIO(data))
    try:
        content: dict[str, Any] = json.loads(data)
        del content[KEY]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"it is no sealed JSON: {error}") from None
    return content


def _check(file: IO[bytes], within: int | None = None) -> None:
    head = file.read() if within is None else file.read(within)
    begin, end = _place(head)
    if head[begin:end].decode() != _digest([head[:begin], UNSEALED.encode(), head[end:]], file):
        raise ValueError("its content has another checksum than when it was written")


def _place(head: bytes) -> tuple[int, int]:
    found = list(_SEAL.finditer(head))
    if len(found) != 1:
        raise ValueError("it holds no checksum: it is damaged, or was written by an earlier version")
    return found[0].span(1)


def _digest(head: Iterable[bytes], rest: IO[bytes]) -> str:
    digest = hashlib.sha256()
    for piece in head:
        digest.update(piece)
    while piece := rest.read(_PIECE):
        digest.update(piece)
    return digest.hexdigest()
