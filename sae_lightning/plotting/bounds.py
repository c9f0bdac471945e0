"""Bounds of F1 and dimensions of each concept, as measured on the data."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from torch import Tensor

from sae_lightning.plotting._checks import FloatArray, float_array
from sae_lightning.plotting._figures import LABEL_SIZE, axis_labels, clean, legend_right, log_counts, new_figure
from sae_lightning.plotting.colors import INK, MUTED_INK, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS: Final = "osD^vPX<>"
_ROW: Final = 0.34  # inches


def concept_bounds(
    bounds: Mapping[str, Tensor],
    concept_names: Sequence[str],
    found_above: float,
    title: str = "Best F1 that a single latent could reach",
) -> "Figure":
    """Draw the bound of each concept's F1, one row per concept and one marker per family of receptive fields.

    Args:
        bounds: Value, lower and upper end of its interval, `(n_concepts, 3)`, by family; NaN where unknown.
        concept_names: One name per concept.
        found_above: Smallest F1 of a concept that counts as found, drawn as a line.
        title: Title of the figure.

    Returns:
        A figure with one panel.

    Raises:
        ValueError: If there is no family or no concept, or a shape is wrong.
    """
    figure, axes = _rows(concept_names, title, len(bounds))
    if not bounds:
        raise ValueError("`bounds` must hold at least one family, got none.")
    axes.axvline(found_above, color=MUTED_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1, label="found from here")
    for i, (name, values) in enumerate(bounds.items()):
        array = float_array(f"bounds[{name!r}]", values, (len(concept_names), 3))
        _markers(axes, array, i, len(bounds), name)
    axes.set_xlim(-0.02, 1.02)
    axis_labels(axes, x="F1 on held-out samples")
    legend_right(figure, axes.get_legend_handles_labels()[0])
    return figure


def concept_dimensions(
    dimensions: Mapping[str, Tensor], concept_names: Sequence[str], title: str = "Dimension of each concept"
) -> "Figure":
    """Draw the dimension of each concept, one row per concept and one marker per estimator, on a logarithmic scale.

    Args:
        dimensions: Value, lower and upper end of its interval, `(n_concepts, 3)`, by estimator; NaN where unknown.
        concept_names: One name per concept.
        title: Title of the figure.

    Returns:
        A figure with one panel.

    Raises:
        ValueError: If there is no estimator or no concept, or a shape is wrong.
    """
    figure, axes = _rows(concept_names, title, len(dimensions))
    if not dimensions:
        raise ValueError("`dimensions` must hold at least one estimator, got none.")
    known = []
    for i, (name, values) in enumerate(dimensions.items()):
        array = float_array(f"dimensions[{name!r}]", values, (len(concept_names), 3))
        _markers(axes, array, i, len(dimensions), name)
        known.append(array[array > 0])
    axes.set_xscale("log")
    drawn = np.concatenate(known)
    if drawn.size:
        axes.set_xlim(drawn.min() / 1.15, drawn.max() * 1.15)
    log_counts(axes.xaxis)
    axis_labels(axes, x="dimensions")
    legend_right(figure, axes.get_legend_handles_labels()[0])
    return figure


def _rows(concept_names: Sequence[str], title: str, n_series: int) -> "tuple[Figure, Axes]":
    """Create a figure with one panel that has a row for each concept, the first on top."""
    n = len(concept_names)
    if not n:
        raise ValueError("`concept_names` must hold at least one concept, got none.")
    longest = max(map(len, concept_names))
    figure = new_figure(4.6 + 0.075 * longest, 1.3 + n * max(_ROW, 0.11 * n_series), title)
    axes = figure.add_subplot()
    clean(axes, grid="x")
    axes.set_yticks(range(n), list(concept_names))
    axes.tick_params(axis="y", length=0, labelsize=LABEL_SIZE, labelcolor=INK)
    axes.set_ylim(n - 0.5, -0.5)
    return figure, axes


def _markers(axes: "Axes", values: FloatArray, series: int, n_series: int, name: str) -> None:
    value, low, high = values.T
    places = np.arange(len(value)) + (series - (n_series - 1) / 2) * 0.7 / n_series
    sides = np.nan_to_num(np.stack([value - low, high - value])).clip(min=0)
    axes.errorbar(
        value,
        places,
        xerr=sides,
        fmt=_MARKERS[series % len(_MARKERS)],
        color=palette(series + 1)[-1],
        markersize=5,
        elinewidth=1.2,
        linestyle="none",
        label=name,
        zorder=3,
    )
