from itertools import combinations

import pytest
import torch

from sae_lightning.data.seeding import seeded_generator


def draw(*parts: int) -> torch.Tensor:
    return torch.randint(2**62, (4,), generator=seeded_generator(*parts))


def test_the_same_parts_give_the_same_stream() -> None:
    assert torch.equal(draw(5, 1), draw(5, 1))
    state = torch.get_rng_state()
    draw(5, 1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("seed", [0, 5, 2**32 - 1, 2**63, -1])
def test_parts_that_differ_give_other_streams(seed: int) -> None:
    tuples = [(seed, 0), (seed, 1), (seed, 2), (seed + 1, 0), (0, seed), (1, seed), (seed, 2**32), (seed, 1, 1)]
    for first, second in combinations(dict.fromkeys(tuples), 2):
        assert not torch.equal(draw(*first), draw(*second)), (first, second)


@pytest.mark.parametrize(
    ("first", "second"),
    [((5,), (5, 0)), ((5, 0), (5, 0, 0)), ((1 + 5 * 2**32,), (1, 5)), ((1, 5), (1 + 5 * 2**32, 0))],
)
def test_parts_of_other_lengths_give_other_streams(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    assert not torch.equal(draw(*first), draw(*second))
