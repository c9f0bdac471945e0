"""Rows show the numbers they are given."""

import numpy as np
import pytest
import torch

from sae_lightning.plotting import concept_bounds, concept_dimensions

NAN = float("nan")
VALUES = {
    "half-space": torch.tensor([[0.6, 0.55, 0.65], [NAN, NAN, NAN]]),
    "ball": torch.tensor([[0.9, 0.8, 0.95], [1.0, 1.0, 1.0]]),
}


def drawn(figure):
    """Places of markers and ends of intervals by label, NaN where nothing is drawn."""
    (axes,) = figure.axes
    found = {}
    for container in axes.containers:
        markers, _, bars = container.lines
        found[container.get_label()] = markers.get_xdata(), [line[:, 0] for line in bars[0].get_segments() if line.size]
    return found


@pytest.mark.parametrize("draw", [lambda *args: concept_bounds(*args, 0.9), concept_dimensions])
def test_markers_and_intervals_stand_at_the_values(draw):
    found = drawn(draw(VALUES, ["a", "b"]))
    assert list(found) == ["half-space", "ball"]
    np.testing.assert_allclose(found["half-space"][0], [0.6, NAN], rtol=1e-6)
    np.testing.assert_allclose(found["half-space"][1][0], [0.55, 0.65], rtol=1e-6)
    np.testing.assert_allclose(found["ball"][0], [0.9, 1.0], rtol=1e-6)
    np.testing.assert_allclose(found["ball"][1], [[0.8, 0.95], [1, 1]], rtol=1e-6)


def test_the_line_stands_where_concepts_are_found():
    (axes,) = concept_bounds(VALUES, ["a", "b"], 0.7).axes
    assert [line.get_xdata()[0] for line in axes.lines if line.get_label() == "found from here"] == [0.7]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]


def test_nothing_known_is_drawn_as_nothing():
    figure = concept_dimensions({"all": torch.full((1, 3), NAN)}, ["a"])
    assert figure.axes[0].get_xscale() == "log"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: concept_bounds({}, ["a"], 0.9), "`bounds` must hold at least one family"),
        (lambda: concept_dimensions({}, ["a"]), "`dimensions` must hold at least one"),
        (lambda: concept_bounds(VALUES, [], 0.9), "`concept_names` must hold at least one"),
        (lambda: concept_bounds({"x": torch.ones(3, 3)}, ["a"], 0.9), r"`bounds\['x'\]` must have shape \(1, 3\)"),
    ],
)
def test_wrong_arguments_are_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
