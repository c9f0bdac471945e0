"""Scatter plots of two-dimensional data, colored by concept."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from torch import Tensor

from sae_lightning.plotting._checks import FloatArray, IntArray, float_array, label_array
from sae_lightning.plotting._figures import axis_labels, clean, legend_right, new_figure
from sae_lightning.plotting.colors import UNLABELED_COLOR, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

MAX_POINTS: Final = 20_000


def sample_scatter(
    points: Tensor,
    concepts: Tensor,
    concept_names: Sequence[str],
    *,
    title: str | None = "Samples by concept",
    axis_names: tuple[str, str] = ("$x_1$", "$x_2$"),
) -> "Figure":
    """Draw a scatter plot of 2-D data, one color per concept, with equal scales on both axes.

    Points are drawn in a fixed random order, so that no concept covers another. Of more than 20,000 points a random
    subset of that size is drawn.

    Args:
        points: The data, shape `(n, 2)`.
        concepts: Concept of each point, integers of shape `(n,)`; -1 is unlabeled and drawn in gray.
        concept_names: One name per concept.
        title: Title of the figure.
        axis_names: Labels of the x and y axes.

    Returns:
        A figure with one panel and a legend on its right.

    Raises:
        ValueError: If shapes are wrong, or a concept has no name.
    """
    xy = float_array("points", points, (None, 2))
    labels = label_array("concepts", concepts, len(xy), concept_names, "concept_names")
    spans = np.ptp(xy, axis=0) if len(xy) else np.ones(2)
    ratio = float(np.clip(spans[0] / max(spans[1], 1e-12), 0.6, 1.6))
    figure = new_figure(4.2 * ratio + 0.5, 4.8, title)
    axes = figure.add_subplot()
    clean(axes, grid=None)
    draw_points(axes, xy, labels, len(concept_names), size=9.0, alpha=0.75, max_points=MAX_POINTS)
    axes.set_aspect("equal", adjustable="box")
    axis_labels(axes, *axis_names)
    legend_right(figure, concept_handles(labels, concept_names))
    return figure


def draw_points(
    axes: "Axes",
    xy: FloatArray,
    labels: IntArray,
    n_concepts: int,
    *,
    size: float,
    alpha: float,
    max_points: int,
) -> None:
    """Draw at most `max_points` points `(n, 2)`, colored by label, in a fixed random order."""
    order = np.random.default_rng(0).permutation(len(xy))[:max_points]
    colors = np.array([*palette(n_concepts), UNLABELED_COLOR])  # label -1 indexes the last one
    drawn = colors[labels[order]].tolist()
    axes.scatter(xy[order, 0], xy[order, 1], s=size, c=drawn, alpha=alpha, linewidths=0, zorder=2)


def concept_handles(labels: IntArray, concept_names: Sequence[str]) -> "list[Line2D]":
    """Return legend entries of all concepts, and of unlabeled points if there are any."""
    from matplotlib.lines import Line2D

    entries = list(zip(concept_names, palette(len(concept_names)), strict=True))
    if (labels < 0).any():
        entries.append(("unlabeled", UNLABELED_COLOR))
    return [
        Line2D([], [], linestyle="none", marker="o", markersize=6, color=color, label=name) for name, color in entries
    ]
