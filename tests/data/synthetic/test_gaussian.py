import numpy as np
import pytest
import torch
from scipy import stats

from sae_lightning.data.seeding import seeded_generator
from sae_lightning.data.synthetic.gaussian import GaussianConcepts, random_rotations, sample_gaussian_concepts

CENTRES = torch.tensor([[1.0, 2.0, 3.0], [-5.0, 0.0, 5.0]])
STD = torch.tensor([[1.0, 0.1, 2.0], [0.5, 3.0, 1e-3]])
ROTATIONS = random_rotations(2, 3, seeded_generator(0)).float()


@pytest.mark.parametrize("rotations", [None, ROTATIONS], ids=["along the axes", "rotated"])
def test_moments_are_those_of_the_definition(rotations: torch.Tensor | None) -> None:
    concepts = GaussianConcepts(CENTRES, STD, rotations)
    x, labels, *_ = concepts.batch(200_000, seeded_generator(1))
    for j in range(2):
        points = x[labels == j].double().numpy()
        turn = np.eye(3) if rotations is None else rotations[j].double().numpy()
        wanted = turn @ np.diag(STD[j].double().numpy() ** 2) @ turn.T
        # deviations over 100,000 draws: of a mean 0.003 standard deviations, of a covariance 0.004 variances
        np.testing.assert_allclose(points.mean(0), CENTRES[j], atol=0.05)
        np.testing.assert_allclose(np.cov(points.T), wanted, atol=0.02 * wanted.max())
        standardised = ((points - CENTRES[j].numpy()) @ turn) / STD[j].numpy()
        for axis in standardised.T:
            assert stats.kstest(axis[:5000], "norm").pvalue > 1e-3


def test_a_point_belongs_to_its_label() -> None:
    labels = torch.tensor([1, 0, 0, 1, 1, 0, 1])
    concepts = GaussianConcepts(100 * CENTRES, STD, ROTATIONS)
    x = concepts.points(labels, seeded_generator(0))
    noise = torch.randn(7, 3, generator=seeded_generator(0))
    for i, j in enumerate(labels.tolist()):  # the definition, one point at a time
        torch.testing.assert_close(x[i], 100 * CENTRES[j] + ROTATIONS[j] @ (STD[j] * noise[i]), rtol=1e-5, atol=1e-4)


def test_points_of_each_concept_in_order() -> None:
    x, labels, *_ = GaussianConcepts(CENTRES, STD).of_each(3, seeded_generator(0))
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    noise = torch.randn(2, 3, 3, generator=seeded_generator(0))
    assert torch.equal(x.view(2, 3, 3), torch.addcmul(CENTRES[:, None], noise, STD[:, None]))
    again = sample_gaussian_concepts(CENTRES, STD, 3, seeded_generator(0))
    assert torch.equal(again[0], x)
    assert torch.equal(again[1], labels)


@pytest.mark.parametrize("frequencies", [None, [1, 1, 1, 1], [1, 2, 3, 10], [0.5, 0, 0.25, 0.25]])
def test_frequencies_of_concepts(frequencies: list[float] | None) -> None:
    given = None if frequencies is None else torch.tensor(frequencies, dtype=torch.float)
    concepts = GaussianConcepts(torch.zeros(4, 1), torch.ones(4, 1), None, given)
    counts = concepts.batch(100_000, seeded_generator(3)).concepts.bincount(minlength=4).numpy()
    shares = np.array(frequencies or [1, 1, 1, 1], float)
    shares /= shares.sum()
    assert (counts[shares == 0] == 0).all()
    assert stats.chisquare(counts[shares > 0], 100_000 * shares[shares > 0]).pvalue > 1e-3


def test_concepts_come_in_random_order() -> None:
    labels = GaussianConcepts(torch.zeros(2, 1), torch.ones(2, 1)).batch(10_000, seeded_generator(3)).concepts
    changes = int((labels[1:] != labels[:-1]).sum())
    assert stats.binomtest(changes, 9999).pvalue > 1e-3


@pytest.mark.parametrize("d_in", [1, 2, 5, 128])
def test_rotations_are_orthogonal_and_turn_nothing_over(d_in: int) -> None:
    made = random_rotations(20, d_in, seeded_generator(2))
    assert made.dtype == torch.float64
    eye = torch.eye(d_in, dtype=torch.float64)
    torch.testing.assert_close(made @ made.mT, eye.expand(20, -1, -1), rtol=0, atol=1e-12)
    torch.testing.assert_close(torch.linalg.det(made), torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-12)


def test_rotations_are_uniform() -> None:
    """The squared coordinates of a uniform direction are beta distributed, and the traces are those of SO(3)."""
    made = random_rotations(4000, 3, seeded_generator(2)).numpy()
    for i in range(3):
        for j in range(3):
            assert stats.kstest(made[:, i, j] ** 2, stats.beta(0.5, 1).cdf).pvalue > 1e-3
            assert stats.ttest_1samp(made[:, i, j], 0).pvalue > 1e-3
    angles = np.arccos((np.trace(made, axis1=1, axis2=2).clip(-1, 3) - 1) / 2)
    assert stats.kstest(angles, lambda angle: (angle - np.sin(angle)) / np.pi).pvalue > 1e-3
