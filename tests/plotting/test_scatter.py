"""Scatter plots show every point in its concept's colour."""

import pytest
import torch
from matplotlib.colors import to_hex

from sae_lightning.plotting import palette, sample_scatter
from sae_lightning.plotting.colors import UNLABELED_COLOR
from sae_lightning.plotting.scatter import MAX_POINTS

NAMES = ["a", "b", "c"]


def test_every_point_has_its_place_and_colour():
    points = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]], dtype=torch.bfloat16)
    figure = sample_scatter(points, torch.tensor([2, 0, -1, 1]), NAMES, title="data", axis_names=("u", "v"))
    (axes,) = figure.axes
    (scatter,) = axes.collections
    drawn = {
        tuple(xy): to_hex(color)
        for xy, color in zip(scatter.get_offsets().tolist(), scatter.get_facecolors(), strict=True)
    }
    first, second, third = (color.lower() for color in palette(3))
    assert drawn == {(0, 1): third, (2, 3): first, (4, 5): UNLABELED_COLOR.lower(), (6, 7): second}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*NAMES, "unlabeled"]
    assert (axes.get_xlabel(), axes.get_ylabel(), figure.get_suptitle()) == ("u", "v", "data")
    assert axes.get_aspect() == 1


def test_many_points_are_a_random_subset_of_all_concepts_and_the_same_each_time():
    n = MAX_POINTS + 10_000
    points = torch.rand(n, 2)
    concepts = torch.arange(n) * 3 // n  # sorted, so that the first points would miss the last concept

    def drawn():
        return sample_scatter(points, concepts, NAMES).axes[0].collections[0]

    first, second = drawn(), drawn()
    assert len(first.get_offsets()) == MAX_POINTS
    assert len({to_hex(color) for color in first.get_facecolors()}) == 3
    assert (first.get_offsets() == second.get_offsets()).all()


def test_no_points_are_an_empty_panel():
    figure = sample_scatter(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long), NAMES)
    assert len(figure.axes[0].collections[0].get_offsets()) == 0
    assert len(figure.legends[0].get_texts()) == 3


@pytest.mark.parametrize(
    ("points", "concepts", "message"),
    [
        (torch.rand(3), torch.zeros(3).long(), r"`points` must have shape \(any, 2\), got \(3,\)"),
        (torch.rand(3, 2), torch.zeros(2).long(), r"`concepts` must have shape \(3\), got \(2,\)"),
        (torch.rand(1, 2), torch.tensor([3]), "`concepts` must lie between -1 and 2"),
    ],
)
def test_errors(points, concepts, message):
    with pytest.raises(ValueError, match=message):
        sample_scatter(points, concepts, NAMES)
