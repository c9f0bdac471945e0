"""What every figure of a sweep does: the points it is given, and one line per SAE family."""

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
        family: SAE family, such as "SpaDE"; it chooses line, colour and marker.
        strength: What was swept: gamma, or k.
        l0: Mean number of active latents per sample.
        f1: F1 per concept, shape `(n_concepts,)`; NaN where unknown.
        scalars: Further metrics by name, such as `{"nmse": 0.01}`; None for none.
        l0_per_concept: L0 on the samples of each concept, shape `(n_concepts,)`; NaN where unknown, None for none.
        nmse_per_concept: Normalised MSE of each concept, likewise.
    """

    family: str
    strength: float
    l0: float
    f1: Tensor
    scalars: Mapping[str, float] | None = None
    l0_per_concept: Tensor | None = None
    nmse_per_concept: Tensor | None = None


Value = Callable[[SweepPoint], tuple[float, float]]
"""Where a point stands in a panel, (x, y); NaN where it does not."""


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
    """One panel per entry of `panels`, with one line per family for points and for reference, and the legend."""
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
    """Draw a line through points `(x, y)`, sorted by x, without those that are NaN; nothing where none is left."""
    drawn = sorted(((x, y) for x, y in points if not (np.isnan(x) or np.isnan(y))), key=lambda pair: pair[0])
    if drawn:
        x, y = zip(*drawn, strict=True)
        axes.plot(x, y, zorder=2 if hollow else 3, **_look(style, hollow=hollow))  # type: ignore[arg-type]


def source_handles(reference_label: str) -> "list[Artist]":
    """What a legend says of full and hollow markers."""
    from matplotlib.lines import Line2D

    style = FamilyStyle(MUTED_INK, "o")
    return [
        Line2D([], [], label=label, **_look(style, hollow=hollow))  # type: ignore[arg-type]
        for label, hollow in (("measured", False), (reference_label, True))
    ]


def check_points(points: Sequence[SweepPoint]) -> None:
    """Raise where there is nothing to draw."""
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
