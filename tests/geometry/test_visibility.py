import math

import pytest
import torch

from sae_lightning.geometry import Bound, sights


def bound(f1, low, high):
    return Bound(*(torch.tensor([value], dtype=torch.float64) for value in (f1, low, high, f1)))


@pytest.mark.parametrize(
    ("best", "limit", "state"),
    [
        (0.95, bound(0.99, 0.98, 1.0), "found"),
        (0.9, bound(0.99, 0.98, 1.0), "found"),
        (0.95, bound(0.5, 0.4, 0.6), "found"),  # whatever was expected
        (0.95, None, "found"),
        (0.5, bound(0.99, 0.98, 1.0), "missed"),
        (0.5, bound(0.85, 0.8, 0.9), "missed"),  # the interval reaches up to it
        (0.5, bound(0.85, 0.8, 0.89), "out of reach"),
        (0.5, None, "hidden"),
        (0.5, bound(math.nan, math.nan, math.nan), "hidden"),
        (math.nan, bound(0.99, 0.98, 1.0), "no samples"),
    ],
)
def test_state(best, limit, state):
    (sight,) = sights(torch.tensor([best], dtype=torch.float64), limit, found_above=0.9)
    assert sight.state == state
    assert sight.bound.known == (limit is not None and not limit.f1.isnan().any())


def test_each_concept_has_its_own_bound():
    limit = Bound(*torch.tensor([[0.5, 1.0], [0.4, 0.9], [0.6, 1.0], [0.5, 1.0]], dtype=torch.float64))
    first, second = sights(torch.tensor([0.3, 0.95]), limit, 0.9)
    assert tuple(first.bound) == (0.5, 0.4, 0.6)
    assert tuple(second.bound) == (1.0, 0.9, 1.0)
    assert (first.state, second.state) == ("out of reach", "found")
