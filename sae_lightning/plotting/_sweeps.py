"""Points of a sweep and panels with one line per SAE family, common to all figures of sweeps."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from torch import Tensor

from sae_lightning.plotting._figures import (
    axis_labels,
    clean,
    is_bottom,
    legend_right,
    log_counts,
    panel_grid,
    panel_title,
)
from sae_lightning.plotting.colors import MUTED_INK, FamilyStyle, family_styles

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

L0_LABEL: Final = "L0 (active latents per sample)"


class SweepPoint(NamedTuple):
    """One trained SAE of a sweep.

    Attributes:
        family: SAE family, such as "SpaDE", which determines line, color and marker.
        strength: The hyperparameter that is swept, gamma or k.
        l0: Mean number of active latents per sample.
        f1: F1 per concept, shape `(n_concepts,)`; NaN where unknown.
        scalars: Further metrics by name, such as `{"nmse": 0.01}`, or None.
        l0_per_concept: L0 on the samples of each concept, shape `(n_concepts,)`, NaN where unknown, or None.
        nmse_per_concept: Normalized MSE of each concept, shape `(n_concepts,)`, NaN where unknown, or None.
    """

    family: str
    strength: float
    l0: float
    f1: Tensor
    scalars: Mapping[str, float] | None = None
    l0_per_concept: Tensor | None = None
    nmse_per_concept: Tensor | None = None


Value = Callable[[SweepPoint], tuple[float, float]]
"""Coordinates (x, y) of a point in a panel; NaN if it is not drawn."""


def small_multiples(
    sweeps: tuple[Sequence[SweepPoint], Sequence[SweepPoint]],
    panels: Mapping[str, Value],
    title: str | None,
    reference_label: str,
    *,
    x_label: str = L0_LABEL,
    log_x: bool,
    share_y: bool,
) -> "Figure":
    """Draw one panel per entry of `panels`, each with a line per family for points and for reference, and a legend."""
    from matplotlib.lines import Line2D

    points, reference = sweeps
    styles = family_styles(point.family for point in (*points, *reference))
    figure, grid = panel_grid(len(panels), (2.9, 2.6), (0.4, 0.5), title=title, share_y=share_y)
    for i, (axes, (name, value)) in enumerate(zip(grid, panels.items(), strict=True)):
        clean(axes, grid="both")
        panel_title(axes, name)
        if log_x:
            axes.set_xscale("log")
            log_counts(axes.xaxis)
        for family, style in styles.items():
            draw_line(axes, map(value, (p for p in reference if p.family == family)), style, hollow=True)
            draw_line(axes, map(value, (p for p in points if p.family == family)), style, hollow=False)
        axis_labels(axes, x=x_label if is_bottom(i, len(panels)) else None)
    handles: list[Artist] = [
        Line2D([], [], label=family, **_look(style, hollow=False))  # type: ignore[arg-type]
        for family, style in styles.items()
    ]
    if reference:
        handles += source_handles(reference_label)
    legend_right(figure, handles, handle_length=2.6)
    return figure


def draw_line(axes: "Axes", points: Iterable[tuple[float, float]], style: FamilyStyle, *, hollow: bool) -> None:
    """Draw a line through the points `(x, y)` without NaN, sorted by x."""
    drawn = sorted(((x, y) for x, y in points if not (np.isnan(x) or np.isnan(y))), key=lambda pair: pair[0])
    if drawn:
        x, y = zip(*drawn, strict=True)
        axes.plot(x, y, zorder=2 if hollow else 3, **_look(style, hollow=hollow))  # type: ignore[arg-type]


def source_handles(reference_label: str) -> "list[Artist]":
    """Return the legend entries of full and hollow markers."""
    from matplotlib.lines import Line2D

    style = FamilyStyle(MUTED_INK, "o")
    return [
        Line2D([], [], label=label, **_look(style, hollow=hollow))  # type: ignore[arg-type]
        for label, hollow in (("measured", False), (reference_label, True))
    ]


def check_points(points: Sequence[SweepPoint]) -> None:
    """Raise a ValueError if there are no points."""
    if not points:
        raise ValueError("`points` must hold at least one trained SAE, got none.")


def _look(style: FamilyStyle, *, hollow: bool) -> dict[str, object]:
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
