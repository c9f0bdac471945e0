import math

import pytest
import torch

from sae_lightning.plotting import FAMILY_STYLES, achieved_f1


def points(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def test_points_stand_at_bound_and_achieved():
    spade, relu = points([0.9, 1.0, 0.99, 1.0], [0.5, 0.7, 0.6, 0.8]), points([0.4, 0.6, 0.5, 0.7], [math.nan] * 4)
    figure = achieved_f1({"a": spade, "b": relu}, ["first", "second"], 0.9, families={"a": "SpaDE", "b": "ReLUSAE"})
    (axes,) = figure.axes
    drawn = {container.get_label(): container for container in axes.containers}
    assert set(drawn) == {"SpaDE", "ReLUSAE"}
    line = drawn["SpaDE"].lines[0]
    assert line.get_xdata().tolist() == pytest.approx([1.0, 0.7])
    assert line.get_ydata().tolist() == pytest.approx([0.9, 0.5])
    assert line.get_color() == FAMILY_STYLES["SpaDE"].color
    (bars,) = drawn["SpaDE"].lines[2]
    assert bars.get_segments()[1].tolist() == [pytest.approx([0.6, 0.5]), pytest.approx([0.8, 0.5])]
    # those that are missed by more than 0.1 have a name
    assert sorted(text.get_text() for text in axes.texts) == ["first", "first", "second"]


def test_saes_of_a_family_share_one_entry_of_the_legend():
    both = {"a": points([0.9, 1.0, 0.9, 1.0]), "b": points([0.8, 1.0, 0.9, 1.0])}
    (axes,) = achieved_f1(both, ["c"], 0.9, families={"a": "SpaDE", "b": "SpaDE"}).axes
    assert axes.get_legend_handles_labels()[1] == ["SpaDE"]


def test_wrong_arguments():
    with pytest.raises(ValueError, match="`points` must hold at least one SAE"):
        achieved_f1({}, ["c"], 0.9)
    with pytest.raises(ValueError, match=r"points\['a'\]"):
        achieved_f1({"a": torch.zeros(2, 4)}, ["c"], 0.9)
