import math
import warnings

import numpy as np
import pytest
import torch
from sklearn.cluster import SpectralClustering
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.pairwise import cosine_similarity

from sae_lightning.metrics import ConceptDiscovery
from sae_lightning.metrics.functional import concept_discovery
from tests.helpers.metrics import N_CONCEPTS, make_samples


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_equals_sklearn():
    s = make_samples()
    kept = (s.concepts >= 0) & (s.codes > 0).any(dim=1)
    order = s.concepts[kept].argsort(stable=True)
    codes, labels = s.codes[kept][order], s.concepts[kept][order]
    cosine = np.clip(cosine_similarity(codes.double().numpy()), 0, 1)
    values = np.linalg.eigvalsh(cosine)
    n_clusters = math.ceil(values.sum() / values.max())
    clusters = SpectralClustering(n_clusters, affinity="precomputed", random_state=0).fit_predict(cosine)
    result = concept_discovery(s.codes[kept], s.concepts[kept])
    assert result.n_clusters == n_clusters
    assert result.stable_rank.item() == pytest.approx(values.sum() / values.max())
    assert result.adjusted_rand.item() == pytest.approx(adjusted_rand_score(labels, clusters))
    assert torch.equal(result.codes, codes)
    assert torch.equal(result.labels, labels)


def test_disjoint_codes_are_found():
    labels = torch.arange(6).repeat_interleave(20)
    codes = torch.eye(6).repeat_interleave(4, dim=1)[labels]  # four latents per concept: a graph in six pieces
    codes *= torch.rand(120, 1, generator=torch.Generator().manual_seed(0)) + 0.1
    result = concept_discovery(codes, labels)
    assert result.adjusted_rand == 1
    assert result.n_clusters == 6  # and not 7 because the stable rank is 6 + 1e-15


def test_silent_samples_are_a_cluster_of_their_own():
    codes = torch.eye(3)[torch.arange(3).repeat_interleave(4)]
    codes[8:] = 0.0
    labels = torch.arange(3).repeat_interleave(4)
    result = concept_discovery(codes, labels)
    assert result.adjusted_rand == 1
    assert result.n_clusters == 2
    mixed = concept_discovery(torch.zeros(12, 3), labels)
    assert mixed.adjusted_rand == 0
    assert mixed.n_clusters == 0
    assert mixed.stable_rank.isnan()


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6])
def test_few_samples(n):
    one = concept_discovery(torch.ones(n, 3), torch.arange(n))
    assert one.n_clusters == 1
    assert one.adjusted_rand == 0
    each = concept_discovery(torch.eye(n), torch.arange(n))
    assert each.n_clusters == n
    assert each.adjusted_rand == 1
    nearly = concept_discovery(torch.cat([torch.eye(n - 1), torch.eye(n - 1)[-1:]]), torch.arange(n))
    assert nearly.n_clusters in range(1, n + 1)
    assert concept_discovery(torch.ones(1, 3), torch.tensor([0])).adjusted_rand.isnan()


def test_negative_cosines_and_non_finite_codes():
    s = make_samples()
    assert concept_discovery(s.codes - 0.1, s.concepts).adjusted_rand.isfinite()
    s.codes[0, 0] = torch.nan
    assert concept_discovery(s.codes, s.concepts.clamp(min=0)).stable_rank.isnan()


def test_the_sample_is_bounded_labelled_and_fair():
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(5000, 3, generator=generator)
    labels = torch.arange(5000) % 5 - 1
    metric = ConceptDiscovery(1, 4, max_samples=400)
    for rows in torch.arange(5000).split(333):
        metric.update(rows[:, None].float() + 1, labels[rows], keys[rows])
    result = metric.compute()
    assert result.codes.shape == (400, 1)
    index = result.codes[:, 0].long() - 1
    assert index.unique().numel() == 400
    assert torch.equal(labels[index], result.labels)
    assert result.labels.bincount(minlength=4).min() > 60  # 100 expected, standard deviation 9
    assert abs(index.double().mean() - 2500) < 5 * 5000 / math.sqrt(12 * 400)


def test_wrong_input():
    metric = ConceptDiscovery(3, N_CONCEPTS)
    with pytest.raises(ValueError, match="got a bool matrix: clusters cannot be compared with overlapping concepts"):
        metric.update(torch.ones(2, 3), torch.ones(2, N_CONCEPTS, dtype=torch.bool), torch.ones(2, 5))
    with pytest.raises(ValueError, match=r"`keys` must have shape \[2, any\], got \[3, 5\]"):
        metric.update(torch.ones(2, 3), torch.tensor([0, 1]), torch.ones(3, 5))
    with pytest.raises(ValueError, match="got a bool matrix"):
        concept_discovery(torch.ones(2, 3), torch.ones(2, 1, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"`concepts` must hold labels >= -1 .*got -2"):
        concept_discovery(torch.ones(2, 3), torch.tensor([0, -2]))
