import numpy as np
import pytest
import torch
from scipy.linalg import svdvals

from sae_lightning.metrics.functional import code_similarity
from tests.helpers.metrics import N_CONCEPTS, make_samples


@pytest.mark.parametrize("overlapping", [False, True])
def test_equals_the_full_matrix(overlapping):
    s = make_samples(overlapping=overlapping)
    z = s.codes.double().numpy()
    speaks = np.linalg.norm(z, axis=1) > 0
    assert not speaks.all()
    unit = z[speaks] / np.linalg.norm(z[speaks], axis=1, keepdims=True)
    cosine = unit @ unit.T
    result = code_similarity(s.codes, s.concepts, N_CONCEPTS)
    values = svdvals(cosine)
    assert result.stable_rank.item() == pytest.approx(values.sum() / values[0], rel=1e-12)
    labels = s.concepts[torch.from_numpy(speaks)]
    inside = [(labels[:, c] if overlapping else labels == c).numpy() for c in range(N_CONCEPTS)]
    expected = [[cosine[np.ix_(a, b)].mean() for b in inside] for a in inside]
    np.testing.assert_allclose(result.concept_cosine, expected, rtol=1e-12)


def test_disjoint_codes_have_as_many_ranks_as_groups():
    labels = torch.arange(5).repeat_interleave(7)
    result = code_similarity(torch.eye(9)[labels] * torch.rand(35, 1).add(0.1), labels, 5)
    assert result.stable_rank.item() == pytest.approx(5)
    torch.testing.assert_close(result.concept_cosine, torch.eye(5, dtype=torch.float64))


def test_silent_and_missing_concepts_are_nan():
    codes = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    cosine = code_similarity(codes, torch.tensor([0, 1]), 3).concept_cosine
    assert cosine[0, 0] == 1
    assert cosine.isnan().sum() == 8


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_codes_that_are_not_finite_give_nan(value):
    codes = torch.tensor([[1.0, value], [1.0, 2.0]])
    assert code_similarity(codes, torch.tensor([0, 0]), 1).stable_rank.isnan()
