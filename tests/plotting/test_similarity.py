"""Heat maps: entries, boundaries and names stand where the groups are."""

import numpy as np
import pytest
import torch

from sae_lightning.plotting import order_by_group, similarity_heatmap, similarity_heatmaps
from sae_lightning.plotting.similarity import MAX_ROWS, _spread

NAMES = ["noun", "verb"]


def test_order_is_stable_and_puts_rows_of_no_group_last():
    groups = torch.tensor([1, -1, 0, 1, -1, 0])
    assert order_by_group(groups).tolist() == [2, 5, 0, 3, 1, 4]
    assert order_by_group(torch.tensor([], dtype=torch.long)).tolist() == []
    assert order_by_group(torch.tensor([-1, -1])).tolist() == [0, 1]
    with pytest.raises(ValueError, match="`groups` must have shape"):
        order_by_group(torch.zeros(2, 2))


def test_every_cell_boundary_and_name_is_drawn():
    matrix = torch.rand(6, 6, dtype=torch.float64)
    groups = torch.tensor([0, 0, 0, 1, 1, -1])
    figure = similarity_heatmap(matrix, groups, NAMES, "codes", vmin=0.1, vmax=0.9, items="latents")
    axes, bar = figure.axes
    np.testing.assert_allclose(axes.images[0].get_array(), matrix.float().numpy())
    assert axes.images[0].get_clim() == (0.1, 0.9)
    horizontal = [line.get_ydata()[0] for line in axes.lines if line.get_ydata()[0] == line.get_ydata()[1]]
    vertical = [line.get_xdata()[0] for line in axes.lines if line.get_xdata()[0] == line.get_xdata()[1]]
    assert horizontal == vertical == [2.5, 4.5]
    for ticks, labels in (
        (axes.get_xticks(), axes.get_xticklabels()),
        (axes.get_yticks(), axes.get_yticklabels()),
    ):
        assert ticks.tolist() == [1.0, 3.5, 5.0]
        assert [label.get_text() for label in labels] == ["noun", "verb", "none"]
    assert len(axes.patches) == 6  # a strip per group and axis
    assert figure.get_suptitle() == "codes"
    assert axes.get_xlabel() == "6 latents"
    assert bar.get_ylabel() == "cosine similarity"


def test_nan_is_masked():
    matrix = torch.eye(2)
    matrix[0, 1] = float("nan")
    drawn = similarity_heatmap(matrix, torch.tensor([0, 1]), NAMES).axes[0].images[0].get_array()
    assert drawn.mask.tolist() == [[False, True], [False, False]]


def test_two_hues_only_below_zero():
    def cmap(vmin):
        return similarity_heatmap(torch.eye(2), torch.tensor([0, 1]), NAMES, vmin=vmin).axes[0].images[0].cmap

    assert cmap(-1.0).name == "RdBu_r"
    assert cmap(0.0)(0.0) == (1.0, 1.0, 1.0, 1.0)


def test_large_matrices_are_thinned_within_groups_and_thin_groups_stay():
    n = 2 * MAX_ROWS
    groups = torch.zeros(n, dtype=torch.long)
    groups[-1] = 1
    values = torch.arange(n, dtype=torch.float32)
    axes = similarity_heatmap(values.expand(n, n), groups, NAMES, vmax=n).axes[0]
    drawn = np.asarray(axes.images[0].get_array())
    assert MAX_ROWS - 1 <= len(drawn) <= MAX_ROWS + 1
    assert drawn[0, -1] == n - 1  # the only row of the second group
    assert np.isin(drawn[0], values.numpy()).all()
    assert np.diff(drawn[0, :-1]).max() <= 3
    assert axes.get_xlabel() == f"3,000 samples, {len(drawn):,} shown"
    assert [text.get_text() for text in axes.get_xticklabels()] == NAMES


def test_names_of_thin_groups_do_not_overlap_and_keep_their_order():
    centres = np.array([50.0, 98.0, 98.5, 99.0])
    placed = _spread(centres, 100, 0.034)
    assert np.diff(placed).min() >= 3.4 - 1e-9
    assert placed.max() <= 99
    assert placed[0] == 50
    np.testing.assert_array_equal(_spread(np.array([10.0, 50.0, 90.0]), 100, 0.034), [10, 50, 90])


@pytest.mark.parametrize(
    ("matrix", "groups", "limits", "message"),
    [
        (torch.rand(3, 2), [0, 0, 1], {}, r"`matrix` must have shape \(any, 3\), got \(3, 2\)"),
        (torch.rand(3), [0, 0, 1], {}, "`matrix` must have shape"),
        (torch.rand(()), [0], {}, "`matrix` must have shape"),
        (torch.rand(3, 3), [0, 1], {}, r"`groups` must have shape \(3\), got \(2,\)"),
        (torch.rand(3, 3), [0, 1, 2], {}, "`groups` must lie between -1 and 1, as `group_names` has 2 entries"),
        (torch.rand(3, 3), [0, 1, 0], {}, "reorder `matrix` and `groups` by `order_by_group"),
        (torch.rand(2, 2), [0, 1], {"vmin": 1.0}, "`vmin` must be below `vmax`, got 1.0 and 1.0"),
        (torch.rand(0, 0), [], {}, "`matrix` must have at least one row"),
    ],
)
def test_errors(matrix, groups, limits, message):
    with pytest.raises(ValueError, match=message):
        similarity_heatmap(matrix, torch.tensor(groups, dtype=torch.long), NAMES, **limits)


@pytest.mark.parametrize(("suffix", "rotation"), [("", 0), (" with a very long name", 90)])
def test_names_stand_upright_only_where_they_would_overlap(suffix, rotation):
    names = [f"{i}{suffix}" for i in range(4)]
    axes = similarity_heatmap(torch.eye(8), torch.arange(4).repeat_interleave(2), names).axes[0]
    assert {text.get_rotation() for text in axes.get_xticklabels()} == {rotation}
    assert {text.get_rotation() for text in axes.get_yticklabels()} == {0}


def test_maps_side_by_side_are_each_drawn_whole_in_the_same_colours():
    maps = {
        "first": (torch.rand(4, 4), torch.tensor([0, 0, 1, -1])),
        "second": (torch.rand(2, 2), torch.tensor([0, 1])),
    }
    *panels, bar = similarity_heatmaps(maps, NAMES, "latents", vmax=0.5, items="rows").axes
    assert [axes.get_title(loc="left") for axes in panels] == list(maps)
    for axes, (matrix, _) in zip(panels, maps.values(), strict=True):
        np.testing.assert_allclose(axes.images[0].get_array(), matrix.numpy())
        assert axes.images[0].get_clim() == (0.0, 0.5)
        assert axes.get_xlabel() == f"{len(matrix)} rows"
    assert [text.get_text() for text in panels[0].get_yticklabels()] == ["noun", "verb", "none"]
    assert [text.get_text() for text in panels[1].get_yticklabels()] == NAMES
    assert bar.get_ylabel() == "cosine similarity"


def test_errors_of_maps_name_the_map():
    with pytest.raises(ValueError, match="`maps` must hold at least one matrix"):
        similarity_heatmaps({}, NAMES)
    with pytest.raises(ValueError, match=r"`maps\['x'\]\[0\]` must have shape \(any, 2\), got \(2, 3\)"):
        similarity_heatmaps({"x": (torch.rand(2, 3), torch.tensor([0, 1]))}, NAMES)
    with pytest.raises(ValueError, match=r"reorder `maps\['x'\]\[0\]` and `maps\['x'\]\[1\]` by `order_by_group"):
        similarity_heatmaps({"x": (torch.rand(3, 3), torch.tensor([0, 1, 0]))}, NAMES)
