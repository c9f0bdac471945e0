"""Sweeps over the sparsity strength: F1 and other metrics against L0, one line per SAE family."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from torch import Tensor

from sae_lightning.plotting._checks import check_length, float_array
from sae_lightning.plotting._figures import (
    axis_labels,
    clean,
    is_bottom,
    is_left,
    legend_right,
    panel_grid,
    panel_title,
)
from sae_lightning.plotting.colors import MUTED_INK, FamilyStyle, family_styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

L0_LABEL: Final = "L0 (active latents per sample)"
SCALAR_LABELS: Final = {
    "nmse": "normalised MSE",
    "mse": "MSE",
    "dead_latents": "dead latents (share)",
    "stable_rank_codes": "stable rank of codes",
    "stable_rank_latents": "stable rank of latents",
    "monosemanticity": "monosemanticity",
    "f1": "mean F1",
}
LOG_SCALARS: Final = ("nmse", "mse")


class SweepPoint(NamedTuple):
    """One trained SAE of a sweep.

    Attributes:
        family: SAE family, such as "SpaDE"; it chooses line, colour and marker.
        strength: What was swept: gamma, or k.
        l0: Mean number of active latents per sample.
        f1: F1 per concept, shape `(n_concepts,)`; NaN where unknown.
        scalars: Further metrics by name, such as `{"nmse": 0.01}`; None for none.
    """

    family: str
    strength: float
    l0: float
    f1: Tensor
    scalars: Mapping[str, float] | None = None


def f1_against_l0(
    points: Sequence[SweepPoint],
    concept_names: Sequence[str],
    *,
    reference: Sequence[SweepPoint] = (),
    groups: Mapping[str, Sequence[int]] | None = None,
    title: str | None = "F1 of the concepts against sparsity",
    y_label: str = "F1 (mean of the 5 best latents)",
    reference_label: str = "paper",
    log_l0: bool = False,
) -> "Figure":
    """The headline figure of Hindupur et al. (2025, arXiv 2503.01822): F1 against L0, one panel per concept.

    Each family is one line with markers through its points, sorted by L0. The reference is drawn dashed with
    hollow markers, in the colours of the same families. Points whose F1 is NaN in a panel are left out there.

    Args:
        points: The trained SAEs.
        concept_names: One name per concept.
        reference: Points to compare with, for example the paper's.
        groups: Panels by name, each showing the mean F1 of the concepts listed, for example
            `{"linearly separable": [0, 2, 4], "not separable": [1, 3, 5]}`; concepts of a group that are NaN
            do not enter a point's mean. By default every concept has its own panel.
        title: Title over all panels.
        y_label: What exactly is drawn.
        reference_label: Name of the reference in the legend.
        log_l0: Whether L0 is drawn on a logarithmic scale.

    Returns:
        A figure with one panel per concept or group, and a legend on the right.

    Raises:
        ValueError: If there are no points or no panels, an `f1` does not have one entry per concept, a group
            is empty, or a group lists a concept that does not exist.
    """
    _check_points(points)
    n_concepts = len(concept_names)
    for argument, sweep in (("points", points), ("reference", reference)):
        for i, point in enumerate(sweep):
            float_array(f"{argument}[{i}].f1", point.f1, (n_concepts,))
    panels: Mapping[str, Sequence[int]] = (
        {name: [i] for i, name in enumerate(concept_names)} if groups is None else groups
    )
    if groups is None:
        check_length("concept_names", list(panels), n_concepts, "names must differ")
    for name, members in panels.items():
        if not members or min(members) < 0 or max(members) >= n_concepts:
            raise ValueError(
                f"`groups[{name!r}]` must list at least one concept between 0 and {n_concepts - 1}, got {members}."
            )
    if not panels:
        raise ValueError("`concept_names` and `groups` must ask for at least one panel, got none.")

    def mean_f1(members: Sequence[int]) -> Callable[[SweepPoint], float]:
        def value(point: SweepPoint) -> float:
            f1 = point.f1.detach().double().cpu()[list(members)]
            return float(f1.nanmean())

        return value

    figure = _small_multiples(
        (points, reference),
        {name: mean_f1(members) for name, members in panels.items()},
        title,
        reference_label,
        log_l0=log_l0,
        share_y=True,
    )
    for i, axes in enumerate(figure.axes):
        axes.set_ylim(-0.03, 1.03)
        axis_labels(axes, y=y_label if is_left(i, len(panels)) else None)
    return figure


def sweep_scalars(
    points: Sequence[SweepPoint],
    names: Sequence[str] | None = None,
    *,
    reference: Sequence[SweepPoint] = (),
    labels: Mapping[str, str] | None = None,
    log_y: Collection[str] = LOG_SCALARS,
    title: str | None = "Metrics against sparsity",
    reference_label: str = "paper",
    log_l0: bool = False,
) -> "Figure":
    """Small multiples of scalar metrics against L0, one panel per metric and one line per SAE family.

    A point that lacks a metric, or has NaN for it, is left out of that panel; on a logarithmic axis so are
    values that are not positive.

    Args:
        points: The trained SAEs; their `scalars` are drawn.
        names: Which scalars, in which order; by default all that `points` have, in order of appearance.
        reference: Points to compare with, for example the paper's.
        labels: Panel titles by name; the project's own metrics have titles already. Like `log_y`, names may
            leave out the prefix `train/`, `val/` or `test/`.
        log_y: Names that get a logarithmic y axis.
        title: Title over all panels.
        reference_label: Name of the reference in the legend.
        log_l0: Whether L0 is drawn on a logarithmic scale.

    Returns:
        A figure with one panel per scalar, and a legend on the right.

    Raises:
        ValueError: If there are no points, they have no scalars, or none of them has one of `names`.
    """
    _check_points(points)
    known = dict.fromkeys(name for point in points for name in point.scalars or {})
    names = list(known) if names is None else names
    if not names:
        raise ValueError("`names` must hold at least one scalar, and `points` have none.")
    for name in names:
        if name not in known:
            valid = ", ".join(known) or "none"
            raise ValueError(f"`names` must be scalars of `points` ({valid}), got {name!r}.")

    def scalar(name: str) -> Callable[[SweepPoint], float]:
        def value(point: SweepPoint) -> float:
            found = float((point.scalars or {}).get(name, np.nan))
            return np.nan if _listed(name, log_y) and found <= 0 else found

        return value

    texts = {**SCALAR_LABELS, **(labels or {})}
    figure = _small_multiples(
        (points, reference),
        {name: scalar(name) for name in names},
        title,
        reference_label,
        log_l0=log_l0,
        share_y=False,
    )
    for name, axes in zip(names, figure.axes, strict=True):
        panel_title(axes, texts.get(name, texts.get(_short(name), name)))
        if _listed(name, log_y):
            axes.set_yscale("log")
        elif axes.get_ylim()[0] < 0 <= axes.dataLim.y0:
            axes.set_ylim(bottom=0 if axes.dataLim.y0 > 0 else None)
    return figure


def _small_multiples(
    sweeps: tuple[Sequence[SweepPoint], Sequence[SweepPoint]],
    panels: Mapping[str, Callable[[SweepPoint], float]],
    title: str | None,
    reference_label: str,
    *,
    log_l0: bool,
    share_y: bool,
) -> "Figure":
    """One panel per entry of `panels`, which says what is drawn on y, and the legend."""
    from matplotlib.lines import Line2D

    points, reference = sweeps
    styles = family_styles(point.family for point in (*points, *reference))
    figure, grid = panel_grid(len(panels), (2.9, 2.6), (0.4, 0.5), title=title, share_y=share_y)
    for i, (axes, (name, value)) in enumerate(zip(grid, panels.items(), strict=True)):
        clean(axes, grid="both")
        panel_title(axes, name)
        if log_l0:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        for family, style in styles.items():
            _draw_line(axes, (p for p in reference if p.family == family), value, style, hollow=True)
            _draw_line(axes, (p for p in points if p.family == family), value, style, hollow=False)
        axis_labels(axes, x=L0_LABEL if is_bottom(i, len(panels)) else None)
    handles = [
        Line2D([], [], label=family, **_line_look(style, hollow=False))  # type: ignore[arg-type]
        for family, style in styles.items()
    ]
    if reference:
        for label, hollow in (("measured", False), (reference_label, True)):
            look = _line_look(FamilyStyle(MUTED_INK, "o"), hollow=hollow)
            handles.append(Line2D([], [], label=label, **look))  # type: ignore[arg-type]
    legend_right(figure, handles, handle_length=2.6)
    return figure


def _draw_line(
    axes: "Axes",
    points: Iterable[SweepPoint],
    value: Callable[[SweepPoint], float],
    style: FamilyStyle,
    *,
    hollow: bool,
) -> None:
    """Draw one family, sorted by L0, without the points that have no value; nothing where none is left."""
    drawn = sorted(((p.l0, value(p)) for p in points), key=lambda pair: pair[0])
    drawn = [(l0, y) for l0, y in drawn if not (np.isnan(l0) or np.isnan(y))]
    if drawn:
        x, y = zip(*drawn, strict=True)
        axes.plot(x, y, zorder=2 if hollow else 3, **_line_look(style, hollow=hollow))  # type: ignore[arg-type]


def _line_look(style: FamilyStyle, *, hollow: bool) -> dict[str, object]:
    return {
        "color": style.color,
        "marker": style.marker,
        "markersize": 5.5,
        "linestyle": (0, (4, 2)) if hollow else "-",
        "linewidth": 1.1 if hollow else 1.7,
        "markerfacecolor": "white" if hollow else style.color,
        "markeredgecolor": style.color if hollow else "white",
        "markeredgewidth": 1.1 if hollow else 0.6,
    }


def _check_points(points: Sequence[SweepPoint]) -> None:
    if not points:
        raise ValueError("`points` must hold at least one trained SAE, got none.")


def _short(name: str) -> str:
    """A log key without the name of its stage: "val/nmse" is "nmse"."""
    stage, _, rest = name.partition("/")
    return rest if rest and stage in ("train", "val", "test") else name


def _listed(name: str, names: Collection[str]) -> bool:
    return name in names or _short(name) in names
