"""Downstream fidelity against losses and divergences computed one token at a time."""

import math

import pytest
import torch

from sae_lightning.metrics import Fidelity
from sae_lightning.metrics.functional import fidelity


def problem(n=30, n_words=7):
    generator = torch.Generator().manual_seed(0)
    clean = torch.randn(n, n_words, generator=generator) * 3
    spliced = clean + torch.randn(n, n_words, generator=generator)
    targets = torch.randint(n_words, (n,), generator=generator)
    return spliced, clean, torch.zeros(n, n_words), clean.mean(0).expand(n, -1), targets


def loss(logits, targets):
    return sum(-math.log(math.exp(row[t]) / sum(map(math.exp, row))) for row, t in zip(logits, targets, strict=True))


def test_losses_shares_and_divergence():
    spliced, clean, zero, mean, targets = given = problem()
    result = fidelity(*given)
    losses = [loss(logits.tolist(), targets.tolist()) / 30 for logits in (spliced, clean, zero, mean)]
    for name, wanted in zip(("cross_entropy", "clean", "zero", "mean"), losses, strict=True):
        assert getattr(result, name).item() == pytest.approx(wanted), name
    assert result.recovered_from_zero.item() == pytest.approx((losses[2] - losses[0]) / (losses[2] - losses[1]))
    assert result.recovered_from_mean.item() == pytest.approx((losses[3] - losses[0]) / (losses[3] - losses[1]))
    p, q = clean.double().softmax(-1), spliced.double().softmax(-1)
    assert result.kl.item() == pytest.approx((p * (p / q).log()).sum().item() / 30)


def test_the_models_own_logits_recover_everything_and_the_ablated_ones_nothing():
    _, clean, zero, mean, targets = problem()
    whole = fidelity(clean, clean, zero, mean, targets)
    assert whole.recovered_from_zero == whole.recovered_from_mean == 1
    assert whole.kl == 0
    assert fidelity(zero, clean, zero, mean, targets).recovered_from_zero == 0
    assert fidelity(mean, clean, zero, mean, targets).recovered_from_mean == 0


def test_shapes_that_do_not_fit_are_refused():
    spliced, clean, zero, mean, targets = problem()
    with pytest.raises(ValueError, match=r"zero must have the shape of clean, \(30, 7\), .* but has \(29, 7\)"):
        fidelity(spliced, clean, zero[1:], mean, targets)
    with pytest.raises(ValueError, match=r"logits must have the shape of clean, .*one row per target, \(29,\)"):
        fidelity(spliced, clean, zero, mean, targets[1:])


def test_batches_add_up():
    given = problem()
    metric = Fidelity()
    for rows in (slice(0, 7), slice(7, 7), slice(7, None)):
        metric.update(*(t[rows] for t in given))
    torch.testing.assert_close(tuple(metric.compute()), tuple(fidelity(*given)), rtol=1e-12, atol=1e-12)
