import numpy as np
import pytest
import torch
from scipy.linalg import svdvals

from sae_lightning.metrics.functional import latent_similarity
from tests.helpers.metrics import D_SAE, N_CONCEPTS, make_samples


@pytest.mark.parametrize("overlapping", [False, True])
def test_equals_a_loop(overlapping):
    s = make_samples(overlapping=overlapping)
    s.codes[:, 0] = 1e-7  # nonzero, but it never fires
    result = latent_similarity(s.codes, s.concepts, N_CONCEPTS)
    z = s.codes.double().numpy()
    live = np.flatnonzero((s.codes > 1e-6).any(dim=0))
    assert torch.equal(result.alive.nonzero().flatten(), torch.from_numpy(live))
    assert len(live) == D_SAE - 3
    profiles = z[:, live] / np.linalg.norm(z[:, live], axis=0)
    cosine = profiles.T @ profiles
    np.testing.assert_allclose(result.cosine[live][:, live], cosine, atol=1e-12)
    assert result.cosine.count_nonzero() <= len(live) ** 2
    values = svdvals(cosine)
    assert result.stable_rank.item() == pytest.approx(values.sum() / values[0], rel=1e-12)

    inside = [(s.concepts[:, c] if overlapping else s.concepts == c).numpy() for c in range(N_CONCEPTS)]
    preferred = np.array([[z[members, i].mean() for members in inside] for i in live]).argmax(axis=1)
    assert result.concept[live].tolist() == preferred.tolist()
    assert (result.concept[~result.alive] == -1).all()
    cross, within = [], []
    for i in range(len(live)):
        for j in range(i):
            (within if preferred[i] == preferred[j] else cross).append(abs(cosine[i, j]))
    assert result.cross_concept.item() == pytest.approx(np.mean(cross), rel=1e-12)
    assert result.within_concept.item() == pytest.approx(np.mean(within), rel=1e-12)


def test_no_pairs_is_nan():
    result = latent_similarity(torch.eye(2), torch.tensor([0, 1]), 2)
    assert result.cross_concept == 0
    assert result.within_concept.isnan()


def test_a_latent_of_unlabelled_samples_has_no_concept():
    result = latent_similarity(torch.eye(2), torch.tensor([0, -1]), 1)
    assert result.alive.all()
    assert result.concept.tolist() == [0, -1]
