import numpy as np
import pytest
import torch

from sae_lightning.metrics import NormalizedMSE
from sae_lightning.metrics.functional import normalized_mse
from tests.helpers.metrics import D_IN, N_CONCEPTS, make_samples


def reference(x, x_hat):
    x, x_hat = x.double().numpy(), x_hat.double().numpy()
    return ((x - x_hat) ** 2).sum() / ((x - x.mean(axis=0)) ** 2).sum()


@pytest.mark.parametrize("overlapping", [False, True])
def test_equals_numpy(overlapping):
    s = make_samples(overlapping=overlapping)
    result = normalized_mse(s.x, s.x_hat, s.concepts, N_CONCEPTS)
    assert result.overall.item() == pytest.approx(reference(s.x, s.x_hat), rel=1e-12)
    for c in range(N_CONCEPTS):
        inside = s.concepts[:, c] if overlapping else s.concepts == c
        assert result.per_concept[c].item() == pytest.approx(reference(s.x[inside], s.x_hat[inside]), rel=1e-12)
    error = np.linalg.norm((s.x_hat.double() - s.x.double()).numpy()) / np.linalg.norm(s.x.double().numpy())
    assert result.norm_ratio.item() == pytest.approx(error, rel=1e-12)


@pytest.mark.parametrize("mean", [1e3, 1e5])
def test_a_large_mean_keeps_the_variance(mean):
    x = torch.randn(4000, D_IN, generator=torch.Generator().manual_seed(0)) + mean
    metric = NormalizedMSE(D_IN, 0)
    for part in x.split(700):
        metric.update(part, part + 0.5, torch.full((len(part),), -1))
    assert metric.compute().overall.item() == pytest.approx(reference(x, x + 0.5), rel=1e-5)


def test_the_mean_scores_one_and_perfection_zero():
    x = make_samples().x
    labels = torch.zeros(len(x), dtype=torch.int64)
    assert normalized_mse(x, x.mean(0).expand_as(x), labels, 1).per_concept[0].item() == pytest.approx(1, rel=1e-6)
    assert normalized_mse(x, x, labels, 1).overall == 0


def test_no_variance_is_nan():
    x = torch.full((1000, D_IN), 0.1)
    result = normalized_mse(x, x + 1, torch.cat([torch.tensor([1]), torch.zeros(999, dtype=torch.int64)]), 2)
    assert result.overall.isnan()
    assert result.per_concept.isnan().all()
    assert result.norm_ratio.item() == pytest.approx(10, rel=1e-6)


def test_reconstruction_must_match_the_data():
    with pytest.raises(ValueError, match=r"`x_hat` must have shape \[2, 3\], got \[2, 4\]"):
        normalized_mse(torch.ones(2, 3), torch.ones(2, 4), torch.tensor([0, 0]), 1)
