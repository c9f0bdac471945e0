"""Blocks that are read: what was written, or refused with their file, whatever it holds."""

import struct

import numpy as np
import pytest
import torch

from sae_lightning.data.activations.blocks import Block, index_bytes, write_chunk
from sae_lightning.data.activations.stored import CachedActivations
from tests.helpers.activations import block, chunk_of

pytest.importorskip("litdata")


def opened(folder, given, n_concepts=3, verify=False, change=bytes):
    """The blocks of a chunk whose bytes were changed, with an index that fits."""
    place = folder / "x" / "train"
    path, digests = write_chunk(place, given, n_concepts)
    (place / "0.index.json").unlink()
    path = path.rename(place / "chunk-000000.bin")
    path.write_bytes(change(path.read_bytes()))
    chunk = chunk_of(path, digests, [len(given.activations)])
    (place / "index.json").write_bytes(index_bytes([chunk]))
    stored = CachedActivations(
        str(folder), "x", "train", [chunk], given.activations.shape[1], given.activations.dtype, n_concepts, verify
    )
    stored.check_index()
    return stored


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_was_written_is_read(dtype, tmp_path):
    given = block(50, dtype=dtype)
    found = opened(tmp_path, given, verify=True).block(0)
    for name, wanted, values in zip(Block._fields, given, found, strict=True):
        assert values.dtype == wanted.dtype, name
        assert torch.equal(values, wanted), name


def item(n, d_in, **changes):
    """The parts of an item in litdata's format, each of which may be another."""
    parts = {
        "kind": struct.pack(">I", 1),
        "rank": struct.pack(">I", 2),
        "shape": struct.pack(">II", n, d_in),
        "activations": np.zeros((n, d_in), np.float32).tobytes(),
        "concepts": np.zeros(n, np.int64).tobytes(),
        "examples": np.arange(n).tobytes(),
        "starts": np.zeros(n, np.int32).tobytes(),
        "ends": np.ones(n, np.int32).tobytes(),
        **changes,
    }
    tensors = [b"".join(list(parts.values())[:4]), *list(parts.values())[4:]]
    content = b"".join(struct.pack("<I", len(tensor)) for tensor in tensors) + b"".join(tensors)
    return struct.pack("<III", 1, 12, 12 + len(content)) + content


def test_the_planted_items_are_in_litdatas_format(tmp_path):
    given = Block(torch.zeros(5, 4), torch.zeros(5).long(), torch.arange(5), torch.zeros(5).int(), torch.ones(5).int())
    path, _ = write_chunk(tmp_path, given, 3)
    assert path.read_bytes() == item(5, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": struct.pack(">II", 4, 5)}, r"holds activations of shape \(4, 5\) .* instead of \(5, 4\)"),
        ({"shape": struct.pack(">II", 2**32 - 1, 2**32 - 1), "activations": b""}, "cannot be read"),
        ({"shape": struct.pack(">II", 2**20, 2**10), "activations": b""}, r"shape \(1048576, 1024\)"),
        ({"rank": struct.pack(">I", 2**31)}, "cannot be read"),
        ({"kind": struct.pack(">I", 99)}, "cannot be read"),
        ({"kind": struct.pack(">I", 15)}, r"torch.int32 instead of \(5, 4\) and torch.float32"),
        ({"activations": b"abc"}, "cannot be read"),
        ({"concepts": np.full(5, 3).tobytes()}, "holds concepts from 3 to 3, but there are 3 concepts"),
        ({"concepts": np.full(5, -2).tobytes()}, "holds concepts from -2 to -2, but there are 3 concepts"),
        ({"concepts": np.zeros(4, np.int64).tobytes()}, r"holds concepts of shape \(4,\)"),
        ({"concepts": b""}, r"holds concepts of shape \(0,\)"),
        ({"examples": np.full(5, -1).tobytes()}, "holds the example -1"),
        ({"starts": np.full(5, -2, np.int32).tobytes()}, "place ends before it starts"),
        ({"ends": np.full(5, -1, np.int32).tobytes()}, "place ends before it starts"),
    ],
)
def test_a_block_that_no_harvest_writes_is_refused_with_its_file(changes, message, tmp_path):
    given = block(5, 4)
    stored = opened(tmp_path, given, change=lambda data: item(5, 4, **changes))
    with pytest.raises(ValueError, match=rf"x/train/chunk-000000\.bin .*{message}"):
        stored.block(0)
    with pytest.raises(ValueError, match=r"x/train/chunk-000000\.bin"):
        stored[[(0, 0, 5)]]


@pytest.mark.parametrize(("start", "end"), [(b"LDFZ01\0\0", b""), (b"", struct.pack("<I", 40) + b"LDARW01\0")])
def test_chunks_that_look_like_other_formats_of_litdata_are_refused(start, end, tmp_path):
    def change(data):
        return start + data[len(start) : len(data) - len(end)] + end

    stored = opened(tmp_path, block(50), change=change)
    with pytest.raises(ValueError, match=r"x/train/chunk-000000\.bin"):
        stored.block(0)


def test_each_block_is_compared_with_its_checksum_when_asked_to(tmp_path):
    def flip(data):
        return data[:-60] + bytes([data[-60] ^ 1]) + data[-59:]

    assert opened(tmp_path / "a", block(50), change=flip).block(0)
    with pytest.raises(ValueError, match=r"chunk-000000\.bin has another checksum than when it was written"):
        opened(tmp_path / "b", block(50), verify=True, change=flip).block(0)
