"""Clusters are found again, and each sample belongs to the nearest."""

import pytest
import torch

from sae_lightning.geometry import cluster


def blobs(offset=0.0):
    centres = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    labels = torch.arange(3).repeat(100)
    noise = torch.randn(300, 2, generator=torch.Generator().manual_seed(0))
    return centres[labels] + 0.3 * noise + offset, labels


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_blobs_are_found_wherever_they_lie(offset):
    x, labels = blobs(offset)
    found = cluster(x, 3)
    assigned = found.of(x)
    assert len({(int(a), int(b)) for a, b in zip(labels, assigned, strict=True)}) == 3
    assert found.names == ["cluster 0", "cluster 1", "cluster 2"]


def test_samples_belong_to_the_nearest_centre():
    x, _ = blobs()
    found = cluster(x, 7, seed=3)
    distances = (x[:, None] - found.centers).square().sum(2)
    assert torch.equal(found.of(x), distances.argmin(1))


def test_the_seed_decides():
    x = torch.randn(500, 3, generator=torch.Generator().manual_seed(1))
    assert torch.equal(cluster(x, 5, 0).centers, cluster(x, 5, 0).centers)
    assert not torch.equal(cluster(x, 5, 0).centers, cluster(x, 5, 1).centers)


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_equal_samples_make_no_empty_clusters():
    assert len(cluster(torch.full((50, 2), 3.0), 4).centers) == 1


@pytest.mark.parametrize("n", [0, 301])
def test_a_wrong_number_is_refused(n):
    with pytest.raises(ValueError, match=f"n_clusters must lie between 1 and the number of samples, 300, but is {n}"):
        cluster(blobs()[0], n)
