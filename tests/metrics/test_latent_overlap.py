import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score

from sae_lightning.metrics import LatentOverlap
from sae_lightning.metrics.functional import latent_overlap


def make(n=400, d=6, seed=0, density=0.2):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, d, generator=generator) * (torch.rand(n, d, generator=generator) < density)


def test_equals_scikit_learn():
    codes, others = make(seed=1), make(d=9, seed=2)
    result = latent_overlap(codes, others, min_jaccard=0.18)
    expected = [[jaccard_score(f > 0, g > 0) for g in others.T] for f in codes.T]
    best = np.max(expected, 1)
    np.testing.assert_allclose(result.jaccard, expected, atol=1e-12)
    np.testing.assert_allclose(result.best, best, atol=1e-12)
    assert result.counterpart.tolist() == np.argmax(expected, 1).tolist()
    assert result.alone == np.mean(best < 0.18)
    assert 0 < result.alone < 1


def test_the_same_latents_in_another_order_are_each_others_counterparts():
    codes = make()
    result = latent_overlap(codes, 3 * codes.roll(2, dims=1))
    assert (result.best == 1).all()
    assert result.counterpart.tolist() == [2, 3, 4, 5, 0, 1]
    assert result.alone == 0
    assert result.alone_by_chance == 1


def test_dead_latents_and_latents_that_never_meet():
    codes = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1e-7, 1.0]])
    result = latent_overlap(codes, torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    torch.testing.assert_close(result.best, torch.tensor([1.0, torch.nan, 0.0]).double(), equal_nan=True)
    assert result.counterpart.tolist() == [1, -1, -1]
    assert result.by_chance.isnan().tolist() == [False, True, False]
    assert result.alone == 0.5


def test_chance_is_what_shuffling_gives():
    codes, others = make(n=1000, d=40, seed=3), make(n=1000, d=50, seed=4, density=0.4)
    drawn = torch.stack([latent_overlap(codes, others, seed=s).by_chance for s in range(20)])
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.stack(
        [latent_overlap(codes, others[torch.randperm(1000, generator=generator)]).best for _ in range(20)]
    )
    assert drawn.mean().item() == pytest.approx(shuffled.mean().item(), rel=0.01)
    assert drawn.std(0).mean().item() == pytest.approx(shuffled.std(0).mean().item(), rel=0.2)


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`others` must have shape \[4, any\], got \[5, 2\]"):
        latent_overlap(torch.zeros(4, 2), torch.zeros(5, 2))
    for build in (lambda: latent_overlap(make(), make(), 1.5), lambda: LatentOverlap(2, 2, 1.5)):
        with pytest.raises(ValueError, match=r"`min_jaccard` must lie between 0 and 1, got 1\.5"):
            build()
