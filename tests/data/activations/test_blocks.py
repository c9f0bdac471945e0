"""Blocks: the index that litdata itself would write, sizes known in advance, and hostile files refused."""

import hashlib
import json

import pytest
import torch

from sae_lightning.data.activations import blocks
from sae_lightning.data.activations.blocks import chunk_bytes, index_bytes, write_chunk
from tests.helpers.activations import block, chunk_of

pytest.importorskip("litdata")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("n", "d_in"), [(1, 1), (1024, 3), (1025, 5), (2100, 7)])
def test_the_size_of_a_chunk_and_its_index_are_those_of_litdatas_writer(n, d_in, dtype, tmp_path):
    path, digests = write_chunk(tmp_path, block(n, d_in, dtype), 3)
    rows = [1024] * (n // 1024) + [n % 1024] * (n % 1024 > 0)
    assert path.stat().st_size == chunk_bytes(rows, d_in, dtype)
    theirs = json.loads((tmp_path / "0.index.json").read_text())
    ours = json.loads(index_bytes([chunk_of(path, digests, rows)]))
    assert ours["chunks"] == theirs["chunks"]
    assert {**ours["config"], "chunk_size": len(rows)} == theirs["config"]


def test_the_index_has_another_version_when_a_chunk_has_another_content(tmp_path):
    chunk = {"file": "x/train/chunk-000000.bin", "rows": [3], "bytes": 1, "sha256": "0" * 64, "blocks": []}
    versions = {json.loads(index_bytes([{**chunk, "sha256": str(i) * 64}]))["updated_at"] for i in range(3)}
    assert len(versions) == 3
    assert all(version.isalnum() and len(version) == 32 for version in versions)  # litdata names a folder so


def test_the_checksum_of_a_block_is_that_of_its_tensors(tmp_path):
    given = block(1500, 3)
    _, digests = write_chunk(tmp_path, given, 3)
    for digest, rows in zip(digests, (slice(0, 1024), slice(1024, 1500)), strict=True):
        content = b"".join(values[rows].numpy().tobytes() for values in given)
        assert digest == hashlib.sha256(content).hexdigest()


def test_what_cannot_be_read_is_not_written(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="a window holds concepts from -1 to 2, but there are 2 concepts"):
        write_chunk(tmp_path, block(50), 2)
    given = block(50)
    with pytest.raises(ValueError, match="place ends before it starts"):
        write_chunk(tmp_path, given._replace(ends=given.starts - 1), 3)
    monkeypatch.setattr(blocks, "MAX_CHUNK_BYTES", 2000)
    with pytest.raises(ValueError, match=r"window_size must be smaller: the 50 activations of a window take 2,0\d\d "):
        write_chunk(tmp_path, block(50), 3)
    assert not list(tmp_path.iterdir())
