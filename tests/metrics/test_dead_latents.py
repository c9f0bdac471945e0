import torch

from sae_lightning.metrics import DeadLatents
from sae_lightning.metrics.functional import dead_latents
from tests.helpers.metrics import D_SAE, make_samples


def test_latents_that_never_exceed_the_threshold():
    codes = make_samples().codes
    codes[:, 0] = 1e-7
    result = dead_latents(codes)
    alive = (codes > 1e-6).any(dim=0)
    assert torch.equal(result.alive, alive)
    assert result.n_dead == 3 == D_SAE - alive.sum()
    assert result.fraction == 3 / D_SAE


def test_one_firing_in_any_batch_is_enough():
    metric = DeadLatents(3)
    metric.update(torch.zeros(5, 3))
    assert metric.compute().fraction == 1
    metric.update(torch.tensor([[0.0, 2e-6, 0.0]]))
    assert metric.compute().alive.tolist() == [False, True, False]
