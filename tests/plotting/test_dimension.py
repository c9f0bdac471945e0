"""L0 against dimension: a panel per family, a line per SAE, a colour per strength."""

import pytest
import torch

from sae_lightning.plotting import SweepPoint, l0_against_dimension
from sae_lightning.plotting.colors import ramp

NAN = float("nan")
DIMENSIONS = [6, 126, 30]


def point(family, strength, *l0):
    return SweepPoint(family, strength, 1.0, torch.zeros(0), l0_per_concept=torch.tensor(l0) if l0 else None)


POINTS = [
    point("SpaDE", 1.0, 6.0, 72.0, 30.0),
    point("SpaDE", 0.1, 12.0, 108.0, 40.0),
    point("SpaDE", 10.0, 1.0, 0.0, NAN),
    point("TopKSAE", 16, 16.0, 16.0, 16.0),
    point("TopKSAE", 32),
]


def lines(axes, hollow=False):
    """Lines of a panel as (colour, x, y), without the diagonal."""
    return [
        (line.get_color(), line.get_xdata().tolist(), line.get_ydata().tolist())
        for line in axes.lines
        if line.get_marker() != "None" and (line.get_markerfacecolor() == "white") == hollow
    ]


def strengths(axes):
    return [text.get_text() for text in axes.get_legend().get_texts()]


def test_every_sae_is_a_line_over_the_dimensions_in_their_order():
    figure = l0_against_dimension(POINTS, DIMENSIONS, title="dimension")
    topk, spade = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["TopKSAE", "SpaDE"]
    weak, middle, strong = ramp(3)
    assert lines(spade) == [
        (middle, [6, 30, 126], [6, 30, 72]),
        (weak, [6, 30, 126], [12, 40, 108]),
        (strong, [6], [1]),  # 0 has no place on a log axis, NaN nowhere
    ]
    assert lines(topk) == [(ramp(2)[0], [6, 30, 126], [16, 16, 16])]
    assert strengths(spade) == ["0.1", "1", "10"]
    assert strengths(topk) == ["16", "32"]
    assert figure.get_suptitle() == "dimension"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["L0 = dimension"]
    assert topk.get_ylabel() == "L0 on its samples"
    assert not spade.get_ylabel()
    for axes in figure.axes:
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert axes.get_xticks().tolist() == [6, 30, 126]
        (diagonal,) = [line for line in axes.lines if line.get_marker() == "None"]
        assert list(diagonal.get_xdata()) == list(diagonal.get_ydata()) == [6, 126]


def test_the_reference_has_the_colours_of_the_same_strengths():
    reference = [point("SpaDE", 0.1 * (1 + 1e-9), 11.0, 107.0, 41.0), point("ReLUSAE", 5, 31.0, 60.0, 43.0)]
    figure = l0_against_dimension(POINTS, DIMENSIONS, reference=reference, reference_label="published")
    relu, _, spade = figure.axes
    assert lines(spade, hollow=True) == [(ramp(3)[0], [6, 30, 126], [11, 41, 107])]
    assert strengths(spade) == ["0.1", "1", "10"]
    assert lines(relu, hollow=True) == [(ramp(1)[0], [6, 30, 126], [31, 43, 60])]
    assert lines(relu) == []
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["L0 = dimension", "measured", "published"]


def test_strengths_are_read_row_by_row():
    points = [point("SpaDE", float(strength), 1.0, 2.0, 3.0) for strength in range(1, 8)]
    (axes,) = l0_against_dimension(points, DIMENSIONS).axes
    assert strengths(axes) == ["1", "5", "2", "6", "3", "7", "4"]  # matplotlib fills four columns, one by one


def test_many_dimensions_leave_the_ticks_to_matplotlib():
    dimensions = list(range(1, 12))
    points = [SweepPoint("SpaDE", 1.0, 1.0, torch.zeros(0), l0_per_concept=torch.rand(11) + 1)]
    (axes,) = l0_against_dimension(points, dimensions).axes
    assert axes.get_xticks().tolist() != dimensions


@pytest.mark.parametrize(
    ("arguments", "reference", "message"),
    [
        (([], DIMENSIONS), [], "`points` must hold at least one trained SAE"),
        ((POINTS, []), [], r"`dimensions` must hold at least one dimension, each at least 1, got \[\]"),
        ((POINTS, [1, 0, 2]), [], r"each at least 1, got \[1, 0, 2\]"),
        ((POINTS, [1, 2]), [], r"`points\[0\].l0_per_concept` must have shape \(2\), got \(3,\)"),
        ((POINTS, DIMENSIONS), [point("a", 1, 2.0)], r"`reference\[0\].l0_per_concept` must have shape \(3\)"),
        ((POINTS[-1:], DIMENSIONS), [], "`points` must have `l0_per_concept` to be drawn, but none has"),
    ],
)
def test_errors(arguments, reference, message):
    with pytest.raises(ValueError, match=message):
        l0_against_dimension(*arguments, reference=reference)
