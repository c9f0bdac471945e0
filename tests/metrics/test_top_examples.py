"""The best examples of each latent equal those of a full sort."""

from importlib import import_module

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from sae_lightning.metrics import TopExamples
from sae_lightning.metrics.functional import top_examples
from tests.helpers.metrics import assert_same


def make_codes(n=500, d_sae=20, seed=0, levels=None):
    """Codes of which most are zero; few `levels` make many of them equal."""
    generator = torch.Generator().manual_seed(seed)
    codes = torch.rand(n, d_sae, generator=generator)
    if levels:
        codes = (codes * levels).ceil() / levels
    codes *= torch.rand(n, d_sae, generator=generator) < torch.linspace(0, 1, d_sae)  # latent 0 is dead
    codes[::7, 3] = 1e-7  # above zero, but does not fire
    return codes


def by_hand(codes, indices, n):
    """Values and indices of every latent's best samples, by a sort in Python."""
    values, found = [], []
    for column in codes.T.tolist():
        firing = sorted((-value, index) for value, index in zip(column, indices.tolist(), strict=True) if value > 1e-6)
        best = firing[:n] + [(0.0, -1)] * (n - len(firing))
        values.append([-value for value, _ in best])
        found.append([index for _, index in best])
    return torch.tensor(values), torch.tensor(found)


@pytest.mark.parametrize("levels", [None, 3])
@pytest.mark.parametrize("n", [1, 4, 600])
@pytest.mark.parametrize("sizes", [[500], [1, 99, 400], [100] * 5])
def test_equals_a_full_sort(levels, n, sizes):
    codes = make_codes(levels=levels)
    indices = torch.randperm(500, generator=torch.Generator().manual_seed(1)) + 2**32 - 500
    metric = TopExamples(20, n)
    for part in torch.arange(500).split(sizes):
        metric.update(codes[part], indices[part])
    result = metric.compute()
    values, found = by_hand(codes, indices, n)
    assert torch.equal(result.values, values)
    assert torch.equal(result.indices, found)
    assert_same(top_examples(codes, indices, n), result)


def test_codes_are_taken_in_parts_of_any_size(monkeypatch):
    whole = top_examples(make_codes(levels=3), torch.arange(500))
    module = import_module("sae_lightning.metrics.functional.top_examples")
    for entries in (1, 130, 7000):
        monkeypatch.setattr(module, "_ENTRIES_AT_ONCE", entries)
        assert_same(top_examples(make_codes(levels=3), torch.arange(500)), whole, exact=True)


def test_counts():
    codes = make_codes()
    result = top_examples(codes, torch.arange(500))
    firing = codes > 1e-6
    assert torch.equal(result.fired, firing.sum(0))
    assert result.samples == 500
    torch.testing.assert_close(result.frequency, firing.double().mean(0))
    torch.testing.assert_close(result.density, firing.double().mean())
    expected = torch.stack([column[on].double().mean() for column, on in zip(codes.T, firing.T, strict=True)])
    torch.testing.assert_close(result.mean_code, expected, equal_nan=True)
    assert result.mean_code[0].isnan()
    assert (result.indices[0] == -1).all()


def test_infinite_and_undefined_codes():
    codes = torch.tensor([[1.0], [torch.inf], [torch.nan]])
    result = top_examples(codes, torch.arange(3), n=3)
    assert result.indices.tolist() == [[1, 0, -1]]


def _run(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    codes, metric = make_codes(levels=4), TopExamples(20)
    for part in torch.arange(rank, 500, 2).split(64):
        metric.update(codes[part], part)
    torch.save(tuple(metric.compute()), f"{folder}/rank{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(_run, args=(str(tmp_path),), nprocs=2)
    expected = top_examples(make_codes(levels=4), torch.arange(500))
    for rank in (0, 1):
        assert_same(type(expected)(*torch.load(tmp_path / f"rank{rank}.pt")), expected)


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.arange(4), r"`indices` must have one entry per sample, shape \[3\], got \[4\]"),
        (torch.arange(3.0), "`indices` must be int64, got torch.float32"),
        (torch.tensor([0, 1, -1]), "`indices` must lie in 0..4294967295, got -1 to 1"),
        (torch.tensor([0, 1, 2**32]), "`indices` must lie in 0..4294967295, got 0 to 4294967296"),
    ],
)
def test_bad_indices(indices, message):
    with pytest.raises(ValueError, match=message):
        TopExamples(20).update(make_codes(3), indices)
