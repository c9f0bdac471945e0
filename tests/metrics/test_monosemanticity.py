import numpy as np
import pytest
import torch

from sae_lightning.metrics.functional import monosemanticity
from tests.helpers.metrics import D_SAE, N_CONCEPTS, make_samples


def brute_force(codes, inside, within=1e-6, at_all=1e-6):
    """Loop over latents and concepts; `inside` is a list of boolean arrays."""
    values = np.full(codes.shape[1], np.nan)
    for i in range(codes.shape[1]):
        f1 = []
        for members in inside:
            hits = (codes[members, i] > within).sum()
            precision = hits / ((codes[:, i] > at_all).sum() + 1e-12)
            recall = hits / (members.sum() + 1e-12)
            f1.append(2 * precision * recall / (precision + recall + 1e-12))
        if sum(f1) > 0:
            values[i] = max(f1) / sum(f1)
    return values


@pytest.mark.parametrize("overlapping", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_equals_a_loop(overlapping, normalize):
    s = make_samples(overlapping=overlapping)
    some = torch.rand(s.codes.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    codes = torch.where(some, s.codes * 1e-4, s.codes)  # some lie between the thresholds
    result = monosemanticity(codes, s.concepts, N_CONCEPTS, normalize=normalize)
    known = slice(None) if overlapping else s.concepts >= 0
    z, labels = codes[known].double().numpy(), s.concepts[known]
    inside = [(labels[:, c] if overlapping else labels == c).numpy() for c in range(N_CONCEPTS)]
    if normalize:
        z = z / np.maximum(np.linalg.norm(z, axis=0), 1e-300)
        expected = brute_force(z, inside, within=1e-3, at_all=1e-5)
    else:
        expected = brute_force(z, inside)
    np.testing.assert_allclose(result.per_latent, expected, atol=1e-10)
    assert result.mean.item() == pytest.approx(np.nanmean(expected), abs=1e-10)
    assert result.std.item() == pytest.approx(np.nanstd(expected), abs=1e-10)
    assert result.per_latent[-2:].isnan().all()
    assert result.concept[-2:].tolist() == [-1, -1]
    assert (result.concept[:-2] >= 0).all()


def test_one_concept_only_is_one():
    codes = torch.eye(4)[torch.tensor([0, 0, 1, 2])]
    result = monosemanticity(codes, torch.tensor([0, 0, 1, 2]), 3)
    assert result.per_latent[:3].tolist() == [1, 1, 1]
    assert result.concept.tolist() == [0, 1, 2, -1]
    assert result.std == 0


def test_normalised_codes_do_not_depend_on_the_scale_of_a_latent():
    s = make_samples()
    scaled = s.codes * torch.logspace(-3, 3, D_SAE)
    one = monosemanticity(s.codes, s.concepts, N_CONCEPTS, normalize=True)
    other = monosemanticity(scaled, s.concepts, N_CONCEPTS, normalize=True)
    torch.testing.assert_close(one, other, equal_nan=True)


def test_thresholds_and_bad_labels():
    codes, labels = torch.tensor([[1.0], [0.5]]), torch.tensor([0, 1])
    strict = monosemanticity(codes, labels, 2, normalize=True, concept_threshold=0.6)
    assert strict.per_latent.tolist() == [1]
    assert monosemanticity(codes, labels, 2, normalize=True).per_latent[0].item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="got 1"):
        monosemanticity(codes, labels, 1, normalize=True)
