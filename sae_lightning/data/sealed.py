"""JSON files in which no byte can change unnoticed: each ends with the checksum of all that comes before."""

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_END = b"\n}"
_SEAL = re.compile(rb',\n "sha256": "([0-9a-f]{64})"\n}')
_SEAL_LENGTH = len(',\n "sha256": "') + 64 + len('"\n}')


def seal(content: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON file whose last value, `sha256`, is the checksum of the file without it.

    Args:
        content: Plain values by name, at least one; no number is infinite or NaN.

    Raises:
        ValueError: If a number is not finite, which JSON cannot hold.
    """
    text = json.dumps(content, indent=1, allow_nan=False).encode()
    return text.removesuffix(_END) + f',\n "sha256": "{hashlib.sha256(text).hexdigest()}"'.encode() + _END


def unseal(data: bytes) -> dict[str, Any]:
    """The content of a file that `seal` made.

    The checksum protects from damage, not from forgers, who can compute it too: check what the file says.

    Args:
        data: The file's bytes.

    Raises:
        ValueError: If they are not what `seal` returned.
    """
    found = _SEAL.fullmatch(data[-_SEAL_LENGTH:])
    whole = data[:-_SEAL_LENGTH] + _END
    if found is None or hashlib.sha256(whole).hexdigest().encode() != found[1]:
        raise ValueError("has another checksum than when it was written")
    try:
        content: dict[str, Any] = json.loads(whole)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is no JSON ({error})") from None
    return content


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()
