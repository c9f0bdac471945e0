"""Samples out of loaders: all equally likely, few held at a time, the same for a seed."""

import pytest
import torch

from sae_lightning.data.collecting import first_samples, random_samples


def batches(n=1_000, size=7):
    x = torch.arange(n, dtype=torch.float32)[:, None]
    return list(zip(x.split(size), torch.arange(n).split(size), strict=True))


def test_the_first_are_taken_and_no_more_is_read():
    read = []
    found = first_samples((read.append(1) or batch for batch in batches()), 20)
    assert found.activations.flatten().tolist() == found.concepts.tolist() == list(range(20))
    assert len(read) == 3
    assert len(first_samples(batches(), 10_000).activations) == 1_000


def test_random_ones_come_from_everywhere_and_keep_their_labels():
    counts = torch.zeros(100)
    for seed in range(400):
        found = random_samples(batches(100), 20, seed)
        assert torch.equal(found.activations.flatten().long(), found.concepts)
        assert len(set(found.concepts.tolist())) == 20
        counts[found.concepts] += 1
    assert (counts - 80).abs().max() < 5 * (400 * 0.2 * 0.8) ** 0.5
    assert torch.equal(random_samples(batches(), 9, 4).concepts, random_samples(batches(), 9, 4).concepts)
    assert random_samples(batches(50), 60, 0).concepts.tolist() == list(range(50))


@pytest.mark.parametrize("collect", [lambda b: first_samples(b, 5), lambda b: random_samples(b, 5, 0)])
def test_nothing_and_nan_are_refused(collect):
    with pytest.raises(ValueError, match="at least one sample, but are empty"):
        collect([])
    with pytest.raises(ValueError, match="must be finite"):
        collect([torch.tensor([[1.0], [float("nan")]])])
    assert collect([torch.ones(3, 2)]).concepts.tolist() == [-1, -1, -1]
