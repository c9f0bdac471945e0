"""Sealed files: every byte counts, and the checksum is the one that anybody can compute."""

import hashlib
import json

import pytest

from sae_lightning.data.sealed import checksum, seal, unseal

CONTENT = {"a": [1, 2.5, -0.0, None], "ü": {"b": "x\ud800\n", "c": 1e-300}, "d": True}


def test_what_is_sealed_is_json_with_the_checksum_of_the_rest():
    data = seal(CONTENT)
    assert unseal(data) == CONTENT
    whole = json.loads(data)
    assert whole.pop("sha256") == hashlib.sha256(json.dumps(CONTENT, indent=1).encode()).hexdigest()
    assert whole == CONTENT
    assert data == json.dumps(json.loads(data), indent=1).encode()


def test_every_single_bit_counts():
    data = seal(CONTENT)
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="has another checksum than when it was written"):
            unseal(bytes(changed))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data + b"\n",
        lambda data: b" " + data,
        lambda data: data.replace(b'"d": true', b'"d":  true'),
        lambda data: data.replace(b'"d": true', b'"d": true, "d": true'),
        lambda data: data.replace(b"2.5", b"2.50"),
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.decode().encode("utf-16"),
        lambda data: data[:-1],
        lambda data: b"",
        lambda data: b"[]",
        lambda data: b"null",
        lambda data: b'"sha256"',
        lambda data: b"[" * 100_000,
        lambda data: b'{"sha256": ' + b"1" * 5000 + b"}",
        lambda data: b"\xff" * 10,
    ],
)
def test_whatever_else_a_file_holds_is_refused(change):
    with pytest.raises(ValueError, match="has another checksum than when it was written"):
        unseal(change(seal(CONTENT)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1\n}", "is no JSON"),
        (b'{"x": ' + b"[" * 100_000 + b"\n}", "is no JSON"),
        (b'{"x": ' + b"1" * 5000 + b"\n}", "is no JSON"),
        (b'{"x": "\xff"\n}', "is no JSON"),
        (b"\n}", "is no JSON"),
    ],
)
def test_forged_files_that_are_no_json_are_refused(text, message):
    data = text[:-2] + f',\n "sha256": "{hashlib.sha256(text).hexdigest()}"\n}}'.encode()
    with pytest.raises(ValueError, match=message):
        unseal(data)


def test_numbers_that_json_cannot_hold_are_not_sealed():
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            seal({"x": value})


def test_the_checksum_of_a_file_is_its_sha256(tmp_path):
    for n in (0, 1, 2**20, 2**20 + 1):
        (tmp_path / "x").write_bytes(b"x" * n)
        assert checksum(tmp_path / "x") == hashlib.sha256(b"x" * n).hexdigest()
