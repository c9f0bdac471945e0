"""Sweeps: each family's line is its points, sorted by L0."""

import pytest
import torch

from sae_lightning.plotting import FAMILY_STYLES, SweepPoint, f1_against_l0, nmse_against_l0, sweep_scalars

NAN = float("nan")
NAMES = ["C0", "C1", "C2"]
POINTS = [
    SweepPoint("SpaDE", 0.1, 8.0, torch.tensor([0.5, 0.25, 1.0]), {"val/nmse": 0.1, "val/dead_latents": 0.0}),
    SweepPoint("SpaDE", 0.01, 2.0, torch.tensor([0.75, NAN, 0.5]), {"val/nmse": 0.2, "val/dead_latents": 0.5}),
    SweepPoint("SpaDE", 0.5, 4.0, torch.tensor([1.0, 0.5, 0.0]), {"val/nmse": 0.0, "val/dead_latents": NAN}),
    SweepPoint("TopKSAE", 2, 2.0, torch.tensor([0.5, 0.5, 0.5], dtype=torch.bfloat16), {"val/nmse": 0.3}),
]
PAPER = [
    SweepPoint("ReLUSAE", 1.0, 9.0, torch.tensor([NAN, 0.5, NAN]), {"val/nmse": 0.4}),
    SweepPoint("ReLUSAE", 0.5, 3.0, torch.tensor([NAN, 0.25, NAN])),
]


def drawn(axes, hollow=False):
    """Points of the lines of a panel as (colour, x, y)."""
    return [
        (line.get_color(), line.get_xdata().tolist(), line.get_ydata().tolist())
        for line in axes.lines
        if (line.get_markerfacecolor() == "white") == hollow
    ]


def color(family):
    return FAMILY_STYLES[family].color


def test_lines_are_the_points_sorted_by_l0_and_nan_is_left_out():
    figure = f1_against_l0(POINTS, NAMES, title="sweep", y_label="best F1")
    assert [axes.get_title(loc="left") for axes in figure.axes] == NAMES
    assert drawn(figure.axes[0]) == [
        (color("TopKSAE"), [2.0], [0.5]),
        (color("SpaDE"), [2.0, 4.0, 8.0], [0.75, 1.0, 0.5]),
    ]
    assert drawn(figure.axes[1]) == [(color("TopKSAE"), [2.0], [0.5]), (color("SpaDE"), [4.0, 8.0], [0.5, 0.25])]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["TopKSAE", "SpaDE"]
    assert figure.get_suptitle() == "sweep"
    assert figure.axes[0].get_ylabel() == "best F1"
    assert all(axes.get_xlabel() == "L0 (active latents per sample)" for axes in figure.axes)
    assert all(axes.get_ylim()[0] <= 0 and axes.get_ylim()[1] >= 1 for axes in figure.axes)


def test_the_reference_is_hollow_and_dashed_and_only_where_it_is_known():
    figure = f1_against_l0(POINTS, NAMES, reference=PAPER, reference_label="published")
    assert drawn(figure.axes[0], hollow=True) == []
    assert drawn(figure.axes[1], hollow=True) == [(color("ReLUSAE"), [3.0, 9.0], [0.25, 0.5])]
    (line,) = [line for line in figure.axes[1].lines if line.get_markerfacecolor() == "white"]
    assert line.get_linestyle() == "--"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["ReLUSAE", "TopKSAE", "SpaDE", "measured", "published"]


def test_groups_average_the_concepts_that_are_known():
    figure = f1_against_l0(POINTS, NAMES, groups={"easy": [0, 1], "hard": [2]})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["easy", "hard"]
    assert drawn(figure.axes[0])[1] == (color("SpaDE"), [2.0, 4.0, 8.0], [0.75, 0.75, 0.375])
    assert drawn(figure.axes[1])[1] == (color("SpaDE"), [2.0, 4.0, 8.0], [0.5, 0.0, 1.0])


def test_five_panels_make_two_rows_with_labels_at_the_edge():
    points = [SweepPoint("SpaDE", 1.0, float(l0), torch.rand(5)) for l0 in range(1, 4)]
    axes = f1_against_l0(points, list("abcde"), log_l0=True).axes
    assert [bool(a.get_xlabel()) for a in axes] == [False, False, True, True, True]  # c has nothing below it
    assert [bool(a.get_ylabel()) for a in axes] == [True, False, False, True, False]
    assert {a.get_xscale() for a in axes} == {"log"}


def test_scalars_have_a_panel_each_and_log_axes_where_asked():
    figure = sweep_scalars(POINTS, reference=PAPER)
    nmse, dead = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["normalized MSE", "dead latents (share)"]
    assert (nmse.get_yscale(), dead.get_yscale()) == ("log", "linear")
    # 0 has no place on a log axis, NaN nowhere, and TopKSAE has no share of dead latents
    assert drawn(nmse) == [(color("TopKSAE"), [2.0], [0.3]), (color("SpaDE"), [2.0, 8.0], [0.2, 0.1])]
    assert drawn(dead) == [(color("SpaDE"), [2.0, 8.0], [0.5, 0.0])]
    assert drawn(nmse, hollow=True) == [(color("ReLUSAE"), [9.0], [0.4])]


def test_errors_of_concepts_stand_over_their_own_l0():
    def made(family, l0, nmse):
        empty = torch.zeros(0)
        return SweepPoint(
            family, 1.0, 99.0, empty, None, torch.tensor(l0), None if nmse is None else torch.tensor(nmse)
        )

    points = [
        made("SpaDE", [8.0, 4.0], [0.25, 0.5]),
        made("SpaDE", [2.0, 6.0], [0.5, 0.25]),
        made("SpaDE", [0.0, 7.0], [1.0, NAN]),  # 0 has no place on a log axis, NaN nowhere
        made("TopKSAE", [2.0, 2.0], None),
    ]
    figure = nmse_against_l0(points, ["a", "b"], reference=[made("ReLUSAE", [4.0, NAN], [0.125, 0.5])])
    first, second = figure.axes
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["a", "b"]
    assert drawn(first) == [(color("SpaDE"), [2.0, 8.0], [0.5, 0.25])]
    assert drawn(second) == [(color("SpaDE"), [4.0, 6.0], [0.5, 0.25])]
    assert drawn(first, hollow=True) == [(color("ReLUSAE"), [4.0], [0.125])]
    assert drawn(second, hollow=True) == []
    assert {(axes.get_xscale(), axes.get_yscale()) for axes in figure.axes} == {("log", "log")}
    assert (first.get_ylabel(), second.get_ylabel()) == ("normalized MSE", "")
    assert {axes.get_xlabel() for axes in figure.axes} == {"L0 on the concept's samples"}


@pytest.mark.parametrize(
    ("points", "names", "message"),
    [
        ([], NAMES, "`points` must hold at least one trained SAE"),
        (POINTS, [], "`concept_names` must hold at least one name"),
        (POINTS, ["a", "a", "b"], "names must differ"),
        (POINTS, NAMES, "none has both"),
        (
            [SweepPoint("a", 1.0, 1.0, torch.zeros(3), None, torch.zeros(3), torch.zeros(2))],
            NAMES,
            r"`points\[0\].nmse_per_concept` must have shape \(3\), got \(2,\)",
        ),
    ],
)
def test_errors_of_nmse(points, names, message):
    with pytest.raises(ValueError, match=message):
        nmse_against_l0(points, names)


def test_names_choose_and_order_the_panels():
    figure = sweep_scalars(POINTS, ["val/dead_latents", "val/nmse"], labels={"nmse": "error"}, log_y=())
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["dead latents (share)", "error"]
    assert figure.axes[1].get_yscale() == "linear"
    assert drawn(figure.axes[1])[1] == (color("SpaDE"), [2.0, 4.0, 8.0], [0.2, 0.0, 0.1])


def test_a_name_without_a_label_is_its_own_title():
    point = SweepPoint("SpaDE", 1.0, 2.0, torch.zeros(0), {"val/f1/noun": 0.5})
    (axes,) = sweep_scalars([point]).axes
    assert axes.get_title(loc="left") == "val/f1/noun"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], NAMES), "`points` must hold at least one trained SAE"),
        ((POINTS, ["a", "b"]), r"`points\[0\].f1` must have shape \(2\), got \(3,\)"),
        ((POINTS, ["a", "a", "b"]), "names must differ"),
        (([SweepPoint("a", 1.0, 1.0, torch.zeros(0))], []), "at least one panel"),
    ],
)
def test_errors_of_f1(arguments, message):
    with pytest.raises(ValueError, match=message):
        f1_against_l0(*arguments)


@pytest.mark.parametrize("members", [[], [3], [-1]])
def test_errors_of_groups(members):
    with pytest.raises(ValueError, match=r"`groups\['g'\]` must list at least one concept between 0 and 2"):
        f1_against_l0(POINTS, NAMES, groups={"g": members})


def test_errors_of_the_reference_and_of_scalars():
    with pytest.raises(ValueError, match=r"`reference\[0\].f1` must have shape \(3\), got \(2,\)"):
        f1_against_l0(POINTS, NAMES, reference=[SweepPoint("a", 1.0, 1.0, torch.zeros(2))])
    with pytest.raises(ValueError, match="`points` must hold at least one"):
        sweep_scalars([])
    with pytest.raises(ValueError, match="`points` have none"):
        sweep_scalars([SweepPoint("a", 1.0, 1.0, torch.zeros(2))])
    with pytest.raises(ValueError, match=r"scalars of `points` \(val/nmse, val/dead_latents\), got 'nope'"):
        sweep_scalars(POINTS, ["nope"])
