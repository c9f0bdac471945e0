"""Principal components and singular values, drawn where they lie."""

import numpy as np
import pytest
import torch

from sae_lightning.plotting import principal_components, singular_values
from sae_lightning.plotting.components import MAX_POINTS

NAMES = ["a", "b"]


def problem(n=60, d=5):
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([5.0, 3.0, 2.0, 0.1, 0.01])[:d]
    return 7 + scale * torch.randn(n, d, generator=generator), torch.arange(n) % 2


def offsets(scatter):
    return np.stack(scatter._offsets3d, axis=1)


def test_points_lie_along_the_components_of_the_data():
    from sklearn.decomposition import PCA

    points, concepts = problem()
    (axes,) = principal_components(points, concepts, NAMES).axes
    pca = PCA(3).fit(points.numpy())
    wanted, drawn = pca.transform(points.numpy()), offsets(axes.collections[0])
    for axis in range(3):  # components have no sign, and points no order
        found = np.sort(drawn[:, axis])
        either = [np.sort(sign * wanted[:, axis]) for sign in (1, -1)]
        assert min(np.abs(found - one).max() for one in either) < 1e-3
    assert axes.get_xlabel() == f"component 1 ({pca.explained_variance_ratio_[0]:.0%})"


def test_prototypes_are_points_in_the_same_place():
    points, concepts = problem()
    (axes,) = principal_components(points, concepts, NAMES, marks=points[:4]).axes
    data, marks = map(offsets, axes.collections)
    assert len(marks) == 4
    for mark in marks:
        assert np.abs(data - mark).sum(1).min() < 1e-3


def test_directions_begin_at_the_origin_and_have_one_length():
    points, concepts = problem(d=3)
    rows = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.5, 0.0]])
    (axes,) = principal_components(points, concepts, NAMES, marks=rows, marks_are="directions").axes
    lines = [np.stack(line.get_data_3d(), axis=1) for line in axes.lines]
    assert len(lines) == 2
    for line in lines:
        assert np.abs(line[0]).max() < 1e-4
        assert np.linalg.norm(line[1]) == pytest.approx(0.8 * np.abs(offsets(axes.collections[0])).max(), rel=1e-3)
    moved = principal_components(points, concepts, NAMES, marks=rows, marks_are="directions", origin=points[0])
    begin = np.stack(moved.axes[0].lines[0].get_data_3d(), axis=1)[0]
    assert np.linalg.norm(begin) == pytest.approx(float((points[0] - points.mean(0)).norm()), rel=1e-3)


def test_many_points_are_a_subset():
    points = torch.randn(MAX_POINTS + 100, 3)
    (axes,) = principal_components(points, torch.zeros(len(points), dtype=torch.int64), NAMES).axes
    assert len(offsets(axes.collections[0])) == MAX_POINTS


def test_singular_values_are_those_of_each_concept():
    points, concepts = problem()
    (axes,) = singular_values(points, concepts, NAMES).axes
    assert axes.get_yscale() == "log"
    for line, concept in zip(axes.lines, (0, 1), strict=True):
        own = points[concepts == concept]
        values = torch.linalg.svdvals((own - own.mean(0)).double())
        np.testing.assert_allclose(line.get_ydata(), values / values[0], rtol=1e-4)
        assert line.get_xdata().tolist() == [1, 2, 3, 4, 5]


def test_a_concept_of_one_point_has_no_line():
    points, _ = problem(n=5)
    (axes,) = singular_values(points, torch.tensor([0, 0, 0, 1, -1]), NAMES).axes
    assert len(axes.lines) == 1


@pytest.mark.parametrize(
    ("arguments", "changes", "message"),
    [
        ((torch.rand(4, 2), torch.zeros(4).long(), NAMES), {}, r"`points` must have at least 3 rows and 3 columns"),
        ((torch.rand(4, 3), torch.zeros(3).long(), NAMES), {}, r"`concepts` must have shape \(4\)"),
        ((torch.rand(4, 3), torch.zeros(4).long(), NAMES), {"marks": torch.rand(2, 4)}, r"`marks` must have shape"),
    ],
)
def test_errors(arguments, changes, message):
    with pytest.raises(ValueError, match=message):
        principal_components(*arguments, **changes)
