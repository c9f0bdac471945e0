"""Bars show the numbers they are given."""

import itertools

import pytest
import torch
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex

from sae_lightning.plotting import FAMILY_STYLES, concept_f1_bars, palette

NAMES = ["noun", "verb", "adverb"]
NAN = float("nan")


def heights(figure):
    """Heights of the bars, one list per SAE, as drawn."""
    return {c.get_label(): [bar.get_height() for bar in c] for c in figure.axes[0].containers if c.patches}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_bars_have_the_heights_of_the_input(dtype):
    f1 = {
        "ReLUSAE": torch.tensor([0.25, 0.5, 1.0], dtype=dtype),
        "SpaDE": torch.tensor([0.75, 0.0, 0.125], dtype=dtype),
    }
    figure = concept_f1_bars(f1, NAMES, title="a title", y_label="best F1")
    (axes,) = figure.axes
    bars = {container.get_label(): [bar.get_height() for bar in container] for container in axes.containers}
    assert bars == {"ReLUSAE": [0.25, 0.5, 1.0], "SpaDE": [0.75, 0.0, 0.125]}
    assert axes.get_ylim() == (0, 1)
    assert axes.get_ylabel() == "best F1"
    assert figure.get_suptitle() == "a title"
    assert [text.get_text() for text in axes.get_xticklabels()] == NAMES
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ReLUSAE", "SpaDE"]
    for container in axes.containers:
        color = FAMILY_STYLES[container.get_label()].color.lower()
        assert {to_hex(bar.get_facecolor()) for bar in container} == {color}


def test_groups_stand_around_their_concept_and_do_not_overlap():
    figure = concept_f1_bars({name: torch.full((3,), 0.5) for name in "abcd"}, NAMES)
    bars = [bar for container in figure.axes[0].containers for bar in container]
    by_concept = [sorted(bars[i::3], key=lambda bar: bar.get_x()) for i in range(3)]
    for concept, group in enumerate(by_concept):
        left, right = group[0].get_x(), group[-1].get_x() + group[-1].get_width()
        assert (left + right) / 2 == pytest.approx(concept)
        assert right - left < 1
        for a, b in itertools.pairwise(group):
            assert a.get_x() + a.get_width() <= b.get_x()


def test_a_nan_is_no_bar_but_a_mark():
    figure = concept_f1_bars({"a": torch.tensor([0.5, NAN, 0.0]), "b": torch.tensor([NAN, NAN, 0.25])}, NAMES)
    assert heights(figure) == {"a": [0.5, 0.0], "b": [0.25]}
    assert [text.get_text() for text in figure.axes[0].texts] == ["n/a"] * 3


def test_one_sae_has_the_colours_of_the_concepts_and_the_values_written():
    figure = concept_f1_bars({"SpaDE": torch.tensor([0.5, 1.0, NAN])}, NAMES)
    (axes,) = figure.axes
    assert [to_hex(bar.get_facecolor()) for bar in axes.containers[0]] == [c.lower() for c in palette(2)]
    assert sorted(text.get_text() for text in axes.texts) == ["0.50", "1.00", "n/a"]
    assert axes.get_xlabel() == "SpaDE"
    assert not figure.legends


def test_error_bars_span_one_standard_deviation():
    f1, std = {"a": torch.tensor([0.5, 0.25, NAN])}, {"a": torch.tensor([0.125, NAN, 0.5])}
    (axes,) = concept_f1_bars(f1, NAMES, std).axes
    (lines,) = [child for child in axes.get_children() if isinstance(child, LineCollection)]
    assert [segment[:, 1].tolist() for segment in lines.get_segments()] == [[0.375, 0.625], [0.25, 0.25]]


@pytest.mark.parametrize(("n_saes", "n_concepts"), [(9, 3), (2, 61)])
def test_many_bars_become_a_heat_map(n_saes, n_concepts):
    f1 = {f"sae {i}": torch.rand(n_concepts) for i in range(n_saes)}
    f1["sae 1"][2] = NAN
    names = [f"c{i}" for i in range(n_concepts)]
    axes, bar = concept_f1_bars(f1, names, y_label="best F1").axes
    drawn = axes.images[0].get_array()
    torch.testing.assert_close(torch.from_numpy(drawn.filled(NAN)), torch.stack(list(f1.values())), equal_nan=True)
    assert axes.images[0].get_clim() == (0, 1)
    assert [text.get_text() for text in axes.get_yticklabels()] == list(f1)
    assert [text.get_text() for text in axes.get_xticklabels()] == names
    assert bar.get_ylabel() == "best F1"
    assert not axes.containers


def test_eight_saes_are_still_bars():
    figure = concept_f1_bars({f"sae {i}": torch.rand(3) for i in range(8)}, NAMES)
    assert len(figure.axes[0].containers) == 8


@pytest.mark.parametrize(
    ("f1", "names", "std", "message"),
    [
        ({}, NAMES, None, "`f1_by_sae` must hold at least one SAE"),
        ({"a": torch.rand(0)}, [], None, "`concept_names` must hold at least one concept"),
        ({"a": torch.rand(2)}, NAMES, None, r"`f1_by_sae\['a'\]` must have shape \(3\), got \(2,\)"),
        ({"a": torch.rand(3, 1)}, NAMES, None, r"`f1_by_sae\['a'\]` must have shape \(3\), got \(3, 1\)"),
        ({"a": torch.tensor([0.0, 0.5, 1.5])}, NAMES, None, r"must lie in \[0, 1\], got \[0.0, 0.5, 1.5\]"),
        ({"a": torch.tensor([-0.1, 0.5, 1.0])}, NAMES, None, r"must lie in \[0, 1\]"),
        ({"a": torch.rand(3)}, NAMES, {"b": torch.rand(3)}, r"SAEs of `f1_by_sae` \(a\), got 'b'"),
        ({"a": torch.rand(3)}, NAMES, {"a": torch.rand(4)}, r"`std_by_sae\['a'\]` must have shape \(3\)"),
        ({"a": torch.rand(3)}, NAMES, {"a": -torch.ones(3)}, "must not be negative"),
    ],
)
def test_errors(f1, names, std, message):
    with pytest.raises(ValueError, match=message):
        concept_f1_bars(f1, names, std)


@pytest.mark.parametrize(("name", "rotation"), [("noun", 0), ("a very long name of a concept", 40)])
def test_names_are_slanted_only_where_they_would_overlap(name, rotation):
    (axes,) = concept_f1_bars({"SpaDE": torch.rand(9)}, [name] * 9).axes
    assert {text.get_rotation() for text in axes.get_xticklabels()} == {rotation}
