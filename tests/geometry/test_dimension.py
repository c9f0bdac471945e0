"""Dimensions, against data whose dimension is known and against counting by brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from sae_lightning.data import HeterogeneityDataModule
from sae_lightning.geometry import dimension, dimensions, heterogeneity
from sae_lightning.geometry.neighbors import neighbor_ratios, two_nn
from sae_lightning.geometry.spectrum import energy_components, participation_ratio

DIMS = (6, 14, 30, 62, 126)


def heterogeneous(n, **arguments):
    data = HeterogeneityDataModule(seed=0, **arguments)
    return data.concepts().of_each(n, torch.Generator().manual_seed(1))


def gaussian(n, std, seed=0):
    std = torch.as_tensor(std, dtype=torch.float32)
    return torch.randn(n, len(std), generator=torch.Generator().manual_seed(seed)) * std


@pytest.mark.parametrize("rotate", [False, True])
def test_the_dimensions_of_the_heterogeneity_data_are_recovered(rotate):
    batch = heterogeneous(1_000, rotate=rotate)
    found = dimensions(batch.activations, batch.concepts, len(DIMS))
    for d, true in zip(found, DIMS, strict=True):
        assert d.headline.value == pytest.approx(true, rel=0.1)
        assert d.components_99.value == pytest.approx(true, rel=0.1)
        assert d.components_90.value == pytest.approx(0.9 * true, abs=1)
    # what the docstring says of the third way: it holds in few dimensions and is a lower bound in many
    assert found[0].two_nn.value == pytest.approx(6, rel=0.1)
    assert found[-1].two_nn.high < 0.6 * 126


def test_a_spectrum_that_falls_lowers_the_participation_ratio_but_not_the_components():
    batch = heterogeneous(2_000, anisotropy=10.0)
    d = dimension(batch.activations[batch.concepts == 2])
    variances = np.logspace(0, -1, 30)
    assert d.participation_ratio.value == pytest.approx(variances.sum() ** 2 / (variances**2).sum(), rel=0.03)
    assert d.participation_ratio.value < 0.75 * 30
    assert d.components_99.value == pytest.approx(30, rel=0.1)


def test_few_samples_do_not_bias_the_participation_ratio():
    draws = [gaussian(60, torch.ones(40), seed) for seed in range(50)]
    centred = [x - x.mean(0) for x in draws]
    corrected = torch.tensor([participation_ratio(x, 1.96).value for x in centred])
    naive = torch.tensor([float(x.T.cov().trace() ** 2 / x.T.cov().square().sum()) for x in centred])
    assert corrected.mean() == pytest.approx(40, rel=0.02)
    assert naive.mean() < 0.7 * 40


def test_traces_are_the_means_over_all_distinct_samples():
    x = gaussian(7, [3.0, 1.0, 0.5]).double()
    of_square = of_trace = 0.0
    for i, j, k, m in itertools.permutations(range(len(x)), 4):
        a, b = x[i] - x[j], x[k] - x[m]
        of_square += float(a @ b) ** 2
        of_trace += float(a @ a) * float(b @ b)
    found = participation_ratio(x - x.mean(0), 1.96).value
    assert found == pytest.approx(of_trace / of_square, rel=1e-9)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    std = torch.logspace(0, -0.5, 20)
    true = float(std.square().sum() ** 2 / std.pow(4).sum())
    held = [dimension(gaussian(200, std, seed)).participation_ratio for seed in range(60)]
    assert 0.88 <= np.mean([e.low <= true <= e.high for e in held]) <= 1
    wide, narrow = (dimension(gaussian(200, std), confidence=c).participation_ratio for c in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.value == wide.value < narrow.high < wide.high


def test_components_are_measured_on_the_other_half():
    x = gaussian(400, torch.logspace(0, -1, 12))
    x = x - x.mean(0)
    curves = []
    for a, b in ((x[:200], x[200:]), (x[200:], x[:200])):
        directions = np.linalg.svd((a - a.mean(0)).numpy(), full_matrices=False)[2]
        curves.append((((b - b.mean(0)).numpy() @ directions.T) ** 2).sum(0))
    share = np.cumsum(sum(curves)) / sum(curves).sum()
    for wanted, found in zip((0.5, 0.9, 0.99), energy_components(x, (0.5, 0.9, 0.99), 1.96), strict=True):
        assert found.value == np.argmax(share >= wanted) + 1
        assert found.low <= found.value <= found.high


def test_neighbours_are_those_of_scikit_learn():
    x = gaussian(500, torch.ones(5)) + 1_000.0  # far from the origin, where squares are large
    distances = NearestNeighbors(n_neighbors=3).fit(x.double().numpy()).kneighbors()[0]
    queries = torch.tensor([3, 499, 0])
    found = neighbor_ratios(x - x.mean(0), queries)
    np.testing.assert_allclose(found, (distances[:, 1] / distances[:, 0])[queries], rtol=1e-3)


def test_two_nn_is_unbiased_for_its_distribution():
    ratios = [torch.rand(100, generator=torch.Generator().manual_seed(s)).double().pow(-1 / 7) for s in range(200)]
    for discard in (0.0, 0.1, 0.5):
        assert np.mean([two_nn(r, 1.96, discard).value for r in ratios]) == pytest.approx(7, rel=0.03)


def test_a_bent_sheet_has_the_dimension_of_the_sheet():
    angle = 6 * torch.rand(2_000, generator=torch.Generator().manual_seed(0))
    height = 4 * torch.rand(2_000, generator=torch.Generator().manual_seed(1))
    sheet = torch.stack([angle.cos() * angle, angle.sin() * angle, height], 1)
    assert dimension(sheet).two_nn.value == pytest.approx(2, rel=0.1)


def test_estimates_do_not_depend_on_units_place_or_constant_features():
    x = gaussian(300, torch.ones(6))
    moved = torch.cat([1e4 * x + 3e4, torch.full((300, 2), 7.0)], 1)
    for a, b in zip(dimension(x)[1:5], dimension(moved)[1:5], strict=True):
        assert b.value == pytest.approx(a.value, rel=1e-3)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (gaussian(29, torch.ones(4)), "29 samples are fewer than the 30"),
        (torch.empty(0, 4), "0 samples are fewer"),
        (torch.full((50, 4), 3.0), "all samples are equal"),
    ],
)
def test_where_nothing_can_be_estimated_it_says_so(x, words):
    d = dimension(x)
    assert all(math.isnan(value) for estimate in d[1:5] for value in estimate)
    assert words in d.notes[0]
    assert not d.headline.known


def test_a_dimension_that_asks_for_more_samples_is_not_given():
    d = dimension(gaussian(100, torch.ones(60)))
    assert not d.participation_ratio.known
    assert not d.components_90.known
    assert any(note.startswith("participation ratio: 100 samples are too few") for note in d.notes)
    assert dimension(gaussian(400, torch.ones(60))).participation_ratio.value == pytest.approx(60, rel=0.05)


def heavy_tailed(n, df, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return torch.distributions.StudentT(df).sample((n, 10))


@pytest.mark.parametrize("df", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("n", [50, 200, 1_000])
def test_no_dimension_exceeds_that_of_the_space(df, n):
    for seed in range(4):
        found = dimension(heavy_tailed(n, df, seed))[1:5]
        assert all(0 < e.low <= e.value <= e.high <= 10 for e in found if e.known)
        assert all(e.high - e.low < 0.9 * 9 for e in found if e.known)


def test_an_interval_that_says_nothing_gives_no_number():
    found = [dimension(heavy_tailed(1_000, 1.0, seed)) for seed in range(4)]  # these gave 110, 70, 1.8 and 35
    words = "is too wide to be informative, as at most 10 are possible"
    missing = [d for d in found if not d.headline.known]
    assert len(missing) == 3
    assert all(any(note.startswith("participation ratio") and words in note for note in d.notes) for d in missing)
    assert dimension(gaussian(1_000, torch.ones(10))).notes == ()


def test_one_feature_has_one_dimension():
    found = dimension(gaussian(100, torch.ones(1)))
    assert [e.value for e in found[1:4]] == pytest.approx([1, 1, 1])


def test_equal_samples_are_left_out_and_counted():
    x = gaussian(100, torch.ones(3))
    d = dimension(torch.cat([x, x[:20]]))
    assert "40 of 120 samples equal another one, so their nearest-neighbor distance is zero" in d.notes
    assert not dimension(torch.cat([x, x])).two_nn.known


def test_overlapping_concepts_are_counted_each():
    x = torch.cat([gaussian(100, [1.0, 0.0, 0.0]), gaussian(100, [1.0, 1.0, 1.0])])
    concepts = torch.zeros(200, 2, dtype=torch.bool)
    concepts[:100, 0] = concepts[:, 1] = True
    first, second = dimensions(x, concepts, 2)
    assert (first.n_samples, second.n_samples) == (100, 200)
    assert first.headline.value == pytest.approx(1, abs=0.01)
    assert second == dimension(x)


def test_heterogeneity_leaves_out_what_is_not_known():
    found = heterogeneity([2.0, math.nan, 8.0])
    assert found.ratio == 4
    assert found.variation == pytest.approx(0.6)
    assert math.isnan(heterogeneity([2.0, math.nan]).ratio)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(40)}, r"x must be a floating-point tensor \(n, d_in\)"),
        ({"x": torch.ones(40, 2, dtype=torch.int64)}, "x must be a floating-point"),
        ({"x": torch.full((40, 2), math.nan)}, "x must be finite"),
        ({"confidence": 1.0}, "confidence must lie between 0 and 1"),
        ({"n_queries": 5}, "n_queries must be at least 30, but is 5"),
    ],
)
def test_wrong_arguments_are_refused(change, words):
    with pytest.raises(ValueError, match=words):
        dimension(**{"x": gaussian(40, torch.ones(2)), **change})
