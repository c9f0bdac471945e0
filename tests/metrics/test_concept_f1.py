import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score

from sae_lightning.metrics import ConceptF1
from sae_lightning.metrics.functional import concept_f1
from tests.helpers.metrics import D_SAE, N_CONCEPTS, make_samples


@pytest.mark.parametrize("overlapping", [False, True])
def test_equals_sklearn(overlapping):
    s = make_samples(overlapping=overlapping)
    result = concept_f1(s.codes, s.concepts, N_CONCEPTS, top_n=3)
    known = slice(None) if overlapping else s.concepts >= 0
    fires = (s.codes > 1e-6)[known].numpy()
    for c in range(N_CONCEPTS):
        truth = (s.concepts[:, c] if overlapping else s.concepts[known] == c).numpy()
        scores = []
        for i in range(D_SAE):
            scores.append(f1_score(truth, fires[:, i], zero_division=0))
            precision = precision_score(truth, fires[:, i], zero_division=0)
            recall = recall_score(truth, fires[:, i], zero_division=0)
            assert result.precision[c, i].item() == pytest.approx(precision, abs=1e-10)
            assert result.recall[c, i].item() == pytest.approx(recall, abs=1e-10)
        np.testing.assert_allclose(result.f1[c], scores, atol=1e-10)
        best = np.sort(scores)[-3:]
        assert result.top_n_mean[c].item() == pytest.approx(best.mean(), abs=1e-10)
        assert result.top_n_std[c].item() == pytest.approx(best.std(), abs=1e-10)
        assert result.best[c].item() == pytest.approx(max(scores), abs=1e-10)
        assert result.best_latent[c].item() == int(np.argmax(scores))
    assert result.overall.item() == pytest.approx(result.top_n_mean.mean().item())


def test_unlabelled_samples_are_left_out():
    s = make_samples()
    known = s.concepts >= 0
    every = concept_f1(s.codes, s.concepts, N_CONCEPTS)
    labelled = concept_f1(s.codes[known], s.concepts[known], N_CONCEPTS)
    torch.testing.assert_close(every, labelled, rtol=0, atol=0)


def test_a_concept_without_samples_enters_no_mean():
    codes = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    result = concept_f1(codes, torch.tensor([0, 2]), n_concepts=3, top_n=1)
    assert result.best[1].isnan()
    assert result.best_latent.tolist() == [0, -1, -1]
    assert result.best[2] == 0
    assert result.overall.item() == pytest.approx(0.5)


def test_defaults_to_the_five_best():
    assert ConceptF1(8, 2).top_n == 5
    with pytest.raises(ValueError, match="`top_n` must be at most d_sae=4, got 5"):
        concept_f1(torch.ones(2, 4), torch.tensor([0, 1]), 2)


def test_purity_is_the_mean_share_of_a_latents_main_concept():
    codes = torch.tensor([[1.0, 1, 0, 0], [1, 0, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 1]])
    result = concept_f1(codes, torch.tensor([0, 0, 1, 1, 2]), n_concepts=3, top_n=1)
    assert result.purity.item() == pytest.approx((1 + 2 / 3 + 2 / 3) / 3, abs=1e-9)  # the third latent never fires
    assert concept_f1(torch.zeros(2, 3), torch.tensor([0, 1]), n_concepts=2, top_n=1).purity.isnan()
