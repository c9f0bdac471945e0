import pytest
import torch

from sae_lightning.metrics.functional._bottom_k import (
    empty_rows,
    hash_rows,
    keep_bottom,
    make_rows,
    merge_bottom,
    read_rows,
)

WORD = (1 << 64) - 1


def python_hash(bits):
    """The same hash with Python's unbounded integers."""

    def mix(v):
        v = ((v ^ (v >> 30)) * 0xBF58476D1CE4E5B9) & WORD
        v = ((v ^ (v >> 27)) * 0x94D049BB133111EB) & WORD
        return v ^ (v >> 31)

    total = 0
    for index, b in enumerate(bits, start=1):
        weight = mix((index * 0x9E3779B97F4A7C15) & WORD) | 1
        total += mix((b * weight + index) & WORD)
    value = mix((total * 0x2545F4914F6CDD1D) & WORD)
    return value - (1 << 64) if value >> 63 else value


def test_hash_equals_plain_integers():
    keys = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    expected = [python_hash(row) for row in keys.view(torch.int32).tolist()]
    assert hash_rows(keys).tolist() == expected


def test_hash_depends_on_content_only():
    keys = torch.randn(50, 9)
    order = torch.randperm(50)
    assert torch.equal(hash_rows(keys)[order], hash_rows(keys[order].clone()))
    assert torch.equal(hash_rows(keys.double()), hash_rows(keys))
    assert torch.equal(hash_rows(-torch.zeros(1, 9)), hash_rows(torch.zeros(1, 9)))
    assert not torch.equal(hash_rows(keys.flip(1)), hash_rows(keys))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hash_spreads_small_round_numbers(dtype):
    """Grids of small integers have few bits that differ; names must nevertheless differ, and look random."""
    grid = torch.cartesian_prod(torch.arange(100), torch.arange(100)).to(dtype)
    names = hash_rows(grid)
    assert names.unique().numel() == 10000
    ones = (names[:, None] >> torch.arange(64) & 1).double().mean(dim=0)
    assert (ones - 0.5).abs().max() < 0.025  # five standard deviations


def test_rows_round_trip():
    codes = torch.randn(5, 3)
    labels = torch.tensor([4, -1, 0, 2, -1])
    read, kept = read_rows(make_rows(codes, labels, torch.randn(5, 2)))
    assert torch.equal(read, codes[labels >= 0])
    assert kept.tolist() == [4, 0, 2]


def test_lowest_names_in_order_whatever_the_split():
    generator = torch.Generator().manual_seed(0)
    keys, labels = torch.randn(300, 4, generator=generator), torch.randint(-1, 3, (300,), generator=generator)
    codes = torch.arange(300.0)[:, None]
    rows = make_rows(codes, labels, keys)
    known = (labels >= 0).nonzero().flatten()
    expected = known[hash_rows(keys)[known].argsort()][:20]
    assert torch.equal(keep_bottom(rows, 20)[:, 3:].view(torch.float32).flatten().long(), expected)

    shards = []
    for shard in rows[torch.randperm(300, generator=generator)].split([40, 40, 220]):
        kept = empty_rows(20, 1)
        for part in shard.split(7):
            kept = keep_bottom(torch.cat([kept, part]), 20)
        shards.append(kept)
    merged = merge_bottom(torch.stack(shards))
    assert torch.equal(merged, keep_bottom(rows, 20))
    assert torch.equal(merge_bottom(torch.stack([merged, merged, shards[0]])), merged)


def test_equal_names():
    """Copies count once; the same content under two labels counts twice, in a fixed order."""
    keys = torch.ones(6, 2)
    labels = torch.tensor([1, 0, 1, 1, -1, 0])
    kept = keep_bottom(torch.cat([empty_rows(4, 1), make_rows(torch.ones(6, 1), labels, keys)]), 4)
    assert kept[:, 2].tolist() == [0, 1, -1, -1]
    assert (kept[2:] == -1).all()
