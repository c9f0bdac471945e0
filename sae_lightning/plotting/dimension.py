"""L0 on each concept against its intrinsic dimension."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from sae_lightning.plotting._checks import float_array
from sae_lightning.plotting._figures import (
    TICK_SIZE,
    axis_labels,
    clean,
    is_left,
    legend_right,
    log_counts,
    panel_grid,
    panel_title,
    row_by_row,
)
from sae_lightning.plotting._sweeps import SweepPoint, check_points, draw_line, source_handles
from sae_lightning.plotting.colors import INK, MUTED_INK, FamilyStyle, family_styles, ramp

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MAX_TICKS: Final = 8  # above this, dimensions are not written under a panel one by one
_LEGEND_COLUMNS: Final = 4
_DIAGONAL: Final = {"color": MUTED_INK, "linewidth": 1.2, "linestyle": (0, (1, 1.2))}


def l0_against_dimension(
    points: Sequence[SweepPoint],
    dimensions: Sequence[int],
    *,
    reference: Sequence[SweepPoint] = (),
    title: str | None = "Active latents per concept against the concept's dimension",
    reference_label: str = "paper",
) -> "Figure":
    """Draw L0 on each concept's samples against the concept's intrinsic dimension, one panel per SAE family, log-log.

    Each line is one SAE, in a color from light to dark by its strength within the family. The dashed diagonal is one
    active latent per dimension. The reference is drawn with dashed lines and hollow markers, in the colors of the same
    strengths. Points without `l0_per_concept`, and entries of it that are NaN or 0, are left out.

    Args:
        points: The trained SAEs, with `l0_per_concept`.
        dimensions: Intrinsic dimension of each concept, at least 1.
        reference: Points to compare with, for example the paper's.
        title: Title over all panels.
        reference_label: Name of the reference in the legend.

    Returns:
        A figure with one panel per family, a legend of its strengths below it, and a legend on the right.

    Raises:
        ValueError: If there are no points, none has `l0_per_concept`, one does not have an entry per concept, or a
            dimension is below 1.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822, section on heterogeneity.
    """
    from matplotlib.lines import Line2D

    check_points(points)
    if not dimensions or min(dimensions) < 1:
        raise ValueError(f"`dimensions` must hold at least one dimension, each at least 1, got {list(dimensions)}.")
    for argument, sweep in (("points", points), ("reference", reference)):
        for i, point in enumerate(sweep):
            if point.l0_per_concept is not None:
                float_array(f"{argument}[{i}].l0_per_concept", point.l0_per_concept, (len(dimensions),))
    if all(point.l0_per_concept is None for point in points):
        raise ValueError("`points` must have `l0_per_concept` to be drawn, but none has.")

    styles = family_styles(point.family for point in (*points, *reference))
    figure, grid = panel_grid(len(styles), (3.1, 3.9), (0.4, 0.5), title=title)
    for i, (axes, (family, style)) in enumerate(zip(grid, styles.items(), strict=True)):
        panel_title(axes, family)
        _draw_family(
            axes,
            dimensions,
            [point for point in points if point.family == family],
            [point for point in reference if point.family == family],
            style.marker,
        )
        axis_labels(axes, x="dimension of the concept", y="L0 on its samples" if is_left(i, len(styles)) else None)
    handles: list[Artist] = [Line2D([], [], label="L0 = dimension", **_DIAGONAL)]  # type: ignore[arg-type]
    if reference:
        handles += source_handles(reference_label)
    legend_right(figure, handles, handle_length=2.6)
    return figure


def _draw_family(
    axes: "Axes",
    dimensions: Sequence[int],
    points: Sequence[SweepPoint],
    reference: Sequence[SweepPoint],
    marker: str,
) -> None:
    """Draw one panel: the diagonal, a line per SAE, and a legend of the strengths below."""
    from matplotlib.lines import Line2D
    from matplotlib.ticker import NullLocator

    clean(axes, grid="both")
    axes.set_xscale("log")
    axes.set_yscale("log")
    ends = [min(dimensions), max(dimensions)]
    axes.plot(ends, ends, zorder=1, **_DIAGONAL)  # type: ignore[arg-type]
    log_counts(axes.xaxis)
    log_counts(axes.yaxis)
    if len(set(dimensions)) <= _MAX_TICKS:
        axes.set_xticks(sorted(set(dimensions)))
        axes.xaxis.set_minor_locator(NullLocator())
    strengths = _distinct([point.strength for point in (*points, *reference)])
    colors = ramp(len(strengths))
    for hollow, sweep in ((True, reference), (False, points)):
        for point in sweep:
            if point.l0_per_concept is not None:
                rank = next(i for i, strength in enumerate(strengths) if _close(strength, point.strength))
                l0 = point.l0_per_concept.detach().double().cpu().tolist()
                line = [(float(d), y if y > 0 else np.nan) for d, y in zip(dimensions, l0, strict=True)]
                draw_line(axes, line, FamilyStyle(colors[rank], marker), hollow=hollow)
    columns = min(_LEGEND_COLUMNS, len(strengths))
    handles = [
        Line2D([], [], color=color, linewidth=3, label=f"{strength:g}")
        for strength, color in zip(strengths, colors, strict=True)
    ]
    axes.legend(
        handles=row_by_row(handles, columns),
        title="strength",
        loc="upper center",
        bbox_to_anchor=(0.5, -0.2),
        ncols=columns,
        frameon=False,
        fontsize=TICK_SIZE,
        title_fontproperties={"size": TICK_SIZE},
        labelcolor=INK,
        handlelength=0.9,
        handletextpad=0.4,
        columnspacing=0.9,
        borderpad=0,
    )


def _distinct(strengths: Sequence[float]) -> list[float]:
    """Return the distinct strengths in ascending order; values that differ by rounding are equal."""
    distinct: list[float] = []
    for strength in sorted(strengths):
        if not distinct or not _close(distinct[-1], strength):
            distinct.append(strength)
    return distinct


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-6)
