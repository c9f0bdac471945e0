"""Size, panels, axes and legends, common to all figures, without pyplot or global settings."""

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

from sae_lightning.plotting.colors import GRID_COLOR, INK, MUTED_INK

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

TITLE_SIZE: Final = 12
PANEL_TITLE_SIZE: Final = 10.5
LABEL_SIZE: Final = 9.5
TICK_SIZE: Final = 8.5


def new_figure(width: float, height: float, title: str | None = None) -> "Figure":
    """Create an empty figure of `width` x `height` inches with constrained layout."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.08)  # type: ignore[union-attr, call-arg]
    if title:
        wrapped = textwrap.fill(title, max(20, int(width * 9)))
        figure.suptitle(wrapped, fontsize=TITLE_SIZE, color=INK, fontweight="bold")
    return figure


def panel_grid(
    n_panels: int,
    panel_size: tuple[float, float],
    margin: tuple[float, float],
    *,
    title: str | None = None,
    share_x: bool = True,
    share_y: bool = True,
) -> "tuple[Figure, list[Axes]]":
    """Create a figure with `n_panels` equal panels in a compact grid.

    Args:
        n_panels: Number of panels, at least one.
        panel_size: Width and height of one panel in inches.
        margin: Width and height in inches for title, axis labels and color bar.
        title: Title over all panels.
        share_x: Whether all panels have the same x axis, with tick labels on the lowest panels only.
        share_y: Whether all panels have the same y axis, with tick labels in the first column only.

    Returns:
        The figure and its panels in reading order.
    """
    columns = panel_columns(n_panels)
    rows = math.ceil(n_panels / columns)
    figure = new_figure(columns * panel_size[0] + margin[0], rows * panel_size[1] + margin[1], title)
    grid = figure.add_gridspec(rows, columns)
    panels: list[Axes] = []
    for i in range(n_panels):
        first = panels[0] if panels else None
        axes = figure.add_subplot(
            grid[i // columns, i % columns],
            sharex=first if share_x else None,
            sharey=first if share_y else None,
        )
        axes.tick_params(
            which="both",
            labelbottom=not share_x or is_bottom(i, n_panels),
            labelleft=not share_y or is_left(i, n_panels),
        )
        panels.append(axes)
    return figure, panels


def panel_columns(n_panels: int) -> int:
    """Return the number of columns: one row up to four panels, beyond that the fewest gaps in the last row."""
    if n_panels <= 4:
        return n_panels
    compact = range(math.ceil(math.sqrt(n_panels)), math.ceil(math.sqrt(2.5 * n_panels)) + 1)
    return min(compact, key=lambda columns: (-n_panels % columns, columns))


def is_bottom(index: int, n_panels: int) -> bool:
    """Whether no panel is below panel `index`."""
    return index + panel_columns(n_panels) >= n_panels


def is_left(index: int, n_panels: int) -> bool:
    """Whether panel `index` is in the first column."""
    return index % panel_columns(n_panels) == 0


def clean(axes: "Axes", grid: Literal["x", "y", "both"] | None = "y") -> None:
    """Style axes with two thin spines, small ticks and a pale grid behind the data."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(MUTED_INK)
        axes.spines[side].set_linewidth(0.8)
    axes.tick_params(labelsize=TICK_SIZE, color=MUTED_INK, labelcolor=INK, width=0.8, length=3)
    axes.tick_params(which="minor", labelsize=TICK_SIZE, color=MUTED_INK, labelcolor=INK)
    axes.set_axisbelow(True)
    if grid:
        axes.grid(True, axis=grid, color=GRID_COLOR, linewidth=0.8)


def log_counts(axis: "Axis") -> None:
    """Label a logarithmic axis with plain numbers, such as 20 and 100."""
    from matplotlib.ticker import LogFormatter

    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(LogFormatter(minor_thresholds=(1, 0.4)))  # minor labels below one decade only


def legend_right(figure: "Figure", handles: "Sequence[Artist]", *, handle_length: float = 1.6) -> None:
    """Add a legend to the right of all panels and widen the figure by its width."""
    columns = math.ceil(len(handles) / max(4, int(figure.get_figheight() / 0.26)))
    longest = max(len(str(handle.get_label())) for handle in handles)
    figure.set_figwidth(figure.get_figwidth() + columns * (0.45 + 0.13 * handle_length + 0.075 * longest))
    figure.legend(
        handles=handles,
        loc="outside right center",
        ncols=columns,
        frameon=False,
        fontsize=TICK_SIZE + 0.5,
        handlelength=handle_length,
    )


def legend_below(figure: "Figure", handles: "Sequence[Artist]") -> None:
    """Add a legend below all panels, filled row by row, in as many columns as fit."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    fitting = max(1, int(figure.get_figwidth() / (0.6 + 0.075 * longest)))
    columns = math.ceil(len(handles) / math.ceil(len(handles) / fitting))
    ordered = row_by_row(handles, columns)
    figure.legend(handles=ordered, loc="outside lower center", ncols=columns, frameon=False, fontsize=TICK_SIZE + 0.5)


def row_by_row(handles: "Sequence[Artist]", columns: int) -> "list[Artist]":
    """Reorder legend entries, which matplotlib fills column by column, so that they are read row by row."""
    return [handle for column in range(columns) for handle in handles[column::columns]]


def panel_title(axes: "Axes", text: str) -> None:
    """Set the left-aligned title of one panel."""
    axes.set_title(text, fontsize=PANEL_TITLE_SIZE, color=INK, loc="left")


def axis_labels(axes: "Axes", x: str | None = None, y: str | None = None) -> None:
    """Set the labels of one or both axes."""
    if x:
        axes.set_xlabel(x, fontsize=LABEL_SIZE, color=INK)
    if y:
        axes.set_ylabel(y, fontsize=LABEL_SIZE, color=INK)
