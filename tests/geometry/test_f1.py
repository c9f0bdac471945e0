import numpy as np
import pytest
import torch
from scipy.optimize import check_grad
from sklearn.metrics import f1_score

from sae_lightning.geometry.f1 import best_threshold, bootstrap_interval, f1_of, outcomes, smooth_f1


def brute_force(scores, members, lowest=-np.inf):
    """The best F1 over all thresholds that make a difference."""
    thresholds = [t for t in [*scores, scores.min() - 1] if t >= lowest] + ([lowest] if np.isfinite(lowest) else [])
    return max(f1_score(members, scores > t, zero_division=0) for t in thresholds)


@pytest.mark.parametrize("lowest", [-np.inf, 0.0, 0.5])
@pytest.mark.parametrize("levels", [3, 1000])
@pytest.mark.parametrize("seed", range(5))
def test_no_threshold_is_better(seed, levels, lowest):
    rng = np.random.default_rng(seed)
    scores = np.round(rng.normal(size=(4, 30)) * levels) / levels  # with few levels, many are equal
    members = rng.random((4, 30)) < 0.4
    threshold, f1 = best_threshold(torch.tensor(scores), torch.tensor(members), lowest)
    for row in range(4):
        assert f1[row].item() == pytest.approx(brute_force(scores[row], members[row], lowest), abs=1e-12)
        reached = f1_score(members[row], scores[row] > threshold[row].item(), zero_division=0)
        assert f1[row].item() == pytest.approx(reached, abs=1e-12)
        assert threshold[row] >= lowest


def test_thresholds_lie_halfway_and_hold_for_neighbouring_numbers():
    scores = torch.tensor([0.0, 1.0, 3.0, 4.0])
    assert best_threshold(scores, scores > 2)[0] == 2
    above_one = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    scores = torch.stack([torch.tensor(1.0), above_one])  # nothing lies between these
    threshold, f1 = best_threshold(scores, torch.tensor([False, True]))
    assert f1 == 1
    assert (scores > threshold).tolist() == [False, True]


def test_all_may_fire_but_none_below_the_lowest_threshold():
    scores = torch.tensor([-2.0, -1.0, -1.0])
    everything = torch.ones(3, dtype=torch.bool)
    threshold, f1 = best_threshold(scores, everything)
    assert f1 == 1
    assert (scores > threshold).all()
    threshold, f1 = best_threshold(scores, everything, 0.0)
    assert f1 == 0
    assert threshold == 0


def test_smooth_f1_is_its_formula_and_has_its_gradient():
    rng = np.random.default_rng(0)
    scores, thresholds = rng.normal(size=(2, 3, 20)), rng.normal(size=(2, 3))
    members, temperatures = (rng.random((3, 20)) < 0.4).astype(float), rng.random((2, 3)) + 0.3

    def formula(scores, thresholds):
        fires = 1 / (1 + np.exp(-(scores - thresholds[..., None]) / temperatures[..., None]))
        return 2 * (fires * members).sum(-1) / (fires.sum(-1) + members.sum(-1))

    tensors = [torch.tensor(value) for value in (scores, thresholds, members, temperatures)]
    np.testing.assert_allclose(smooth_f1(*tensors), formula(scores, thresholds), rtol=1e-12)

    weights = rng.normal(size=(2, 3))

    def value(flat):
        return (weights * formula(flat[:120].reshape(2, 3, 20), flat[120:].reshape(2, 3))).sum()

    def gradient(flat):
        at = torch.tensor(flat, requires_grad=True)
        found = smooth_f1(at[:120].view(2, 3, 20), at[120:].view(2, 3), *tensors[2:])
        (found * torch.tensor(weights)).sum().backward()
        return at.grad.numpy()

    assert check_grad(value, gradient, np.concatenate([scores.ravel(), thresholds.ravel()])) < 1e-6


def test_smooth_f1_becomes_f1():
    torch.manual_seed(0)
    scores, members = torch.randn(1, 2, 50), torch.rand(2, 50) < 0.5
    steep = smooth_f1(scores, torch.zeros(1, 2), members.float(), torch.full((1, 2), 1e-6))
    torch.testing.assert_close(steep, f1_of(outcomes(scores > 0, members)).float())


def test_outcomes_give_f1():
    rng = np.random.default_rng(1)
    fires, members = rng.random((3, 40)) < 0.3, rng.random((3, 40)) < 0.5
    expected = [f1_score(m, f) for m, f in zip(members, fires, strict=True)]
    np.testing.assert_allclose(f1_of(outcomes(torch.tensor(fires), torch.tensor(members))), expected)


def test_intervals_are_those_of_plain_resampling():
    rng = np.random.default_rng(2)
    members = rng.random(400) < 0.3
    fires = members ^ (rng.random(400) < 0.15)
    picked = rng.integers(400, size=(8000, 400))
    hits = (fires & members)[picked].sum(1)
    plain = np.quantile(2 * hits / (fires[picked].sum(1) + members[picked].sum(1)), [0.05, 0.95])
    counts = outcomes(torch.tensor(fires), torch.tensor(members))
    low, high = bootstrap_interval(counts[:, None], 400, 8000, 0.9, torch.Generator().manual_seed(0))
    assert low.item() == pytest.approx(plain[0], abs=4e-3)
    assert high.item() == pytest.approx(plain[1], abs=4e-3)
    assert low < f1_of(counts) < high
    assert high - low > 0.05


def test_intervals_of_a_perfect_latent_are_points():
    counts = torch.tensor([[10.0], [0.0], [0.0]], dtype=torch.float64)
    assert [end.item() for end in bootstrap_interval(counts, 10, 50, 0.95, torch.Generator())] == [1, 1]
