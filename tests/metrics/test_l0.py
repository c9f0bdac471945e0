import numpy as np
import pytest
import torch

from sae_lightning.metrics.functional import l0
from sae_lightning.nn.firing import FIRING_THRESHOLD
from tests.helpers.metrics import N_CONCEPTS, make_samples


@pytest.mark.parametrize("overlapping", [False, True])
def test_equals_a_loop(overlapping):
    samples = make_samples(overlapping=overlapping)
    counts = (samples.codes.numpy() > 1e-6).sum(axis=1)
    result = l0(samples.codes, samples.concepts, N_CONCEPTS)
    assert result.overall.item() == pytest.approx(counts.mean(), abs=1e-15)
    for c in range(N_CONCEPTS):
        inside = samples.concepts[:, c] if overlapping else samples.concepts == c
        assert result.per_concept[c].item() == pytest.approx(counts[inside.numpy()].mean(), abs=1e-15)


def test_threshold_is_strict_and_not_rounded():
    assert FIRING_THRESHOLD == 1e-6
    codes = torch.tensor([[1e-6, np.nextafter(np.float32(1e-6), np.float32(1)), 0.0, -1.0, torch.nan]])
    labels = torch.tensor([0])
    assert l0(codes, labels, 1).overall == 2  # the second, and the negative one
    just_above = torch.tensor([[1.01e-6]]).half()
    assert just_above == torch.tensor(1e-6).half()  # so that a threshold in half precision would miss it
    assert just_above.float() > 1e-6
    assert l0(just_above, labels, 1).overall == 1


def test_a_concept_without_samples_is_nan():
    result = l0(torch.ones(2, 3), torch.tensor([0, 0]), n_concepts=2)
    assert result.per_concept.tolist()[0] == 3
    assert result.per_concept[1].isnan()
