"""Seals: a checksum inside the file that it protects, which detects any changed bit."""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

KEY = "sae_lightning_sha256"
UNSEALED = "0" * 64
"""Placeholder under `KEY` before a file is sealed; the checksum is computed with this placeholder in place."""

_SEAL = re.compile(rb'"' + KEY.encode() + rb'": ?"([0-9a-f]{64})"')
_PIECE = 2**20


def write_sealed(file: IO[bytes], content: bytes, within: int | None = None) -> None:
    """Write content, and replace the placeholder `UNSEALED` under its `KEY` by the checksum.

    Args:
        file: A file that is open for writing.
        content: JSON, or a format with a JSON header.
        within: Number of bytes at the start in which to look for the placeholder; None for all.
    """
    begin, end = _place(content[:within])
    view = memoryview(content)
    file.write(view[:begin])
    file.write(hashlib.sha256(content).hexdigest().encode())
    file.write(view[end:])


def check_seal(path: Path, within: int | None = None) -> None:
    """Verify the checksum of a sealed file.

    Args:
        path: The file.
        within: Number of bytes at the start in which to look for the seal; None for all.

    Raises:
        ValueError: If the file has no seal, or its checksum differs from that of its content.
    """
    with path.open("rb") as file:
        _check(file, within)


def seal_json(content: Mapping[str, Any]) -> bytes:
    """Return the bytes of a sealed JSON file.

    Args:
        content: Plain values by name; all numbers must be finite.

    Raises:
        ValueError: If a number is not finite, which JSON cannot represent.

    Example:
        >>> from sae_lightning.run.seal import seal_json, unseal_json
        >>> unseal_json(seal_json({"seed": 3}))
        {'seed': 3}
        >>> unseal_json(seal_json({"seed": 3}).replace(b'"seed": 3', b'"seed": 4'))
        Traceback (most recent call last):
        ValueError: its content has another checksum than when it was written
    """
    file = BytesIO()
    write_sealed(file, json.dumps({KEY: UNSEALED, **content}, indent=1, allow_nan=False).encode())
    return file.getvalue()


def unseal_json(data: bytes) -> dict[str, Any]:
    """Verify and parse a sealed JSON file.

    The checksum protects against damage but not against forgery, so the values must still be checked.

    Args:
        data: Bytes of the file.

    Returns:
        The content without the seal.

    Raises:
        ValueError: If the file has no seal, its checksum differs from that of its content, or it is not JSON.
    """
    _check(BytesIO(data))
    try:
        content: dict[str, Any] = json.loads(data)
        del content[KEY]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"it is not sealed JSON: {error}") from None
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
