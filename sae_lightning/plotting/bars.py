"""F1 per concept of one or several SAEs, as bars or as a heat map."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from torch import Tensor

from sae_lightning.plotting._checks import FloatArray, float_array
from sae_lightning.plotting._figures import LABEL_SIZE, TICK_SIZE, axis_labels, clean, legend_below, new_figure
from sae_lightning.plotting.colors import INK, MUTED_INK, family_styles, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_SAES: Final = 8
MAX_BARS: Final = 120


def concept_f1_bars(
    f1_by_sae: Mapping[str, Tensor],
    concept_names: Sequence[str],
    std_by_sae: Mapping[str, Tensor] | None = None,
    title: str = "F1 per concept",
    *,
    y_label: str = "F1",
) -> "Figure":
    """Draw the F1 of each concept as grouped bars, one group per concept and one bar per SAE.

    A single SAE is drawn in the colors of the concepts, several SAEs in the colors of their families. A concept without
    a value (NaN) is marked "n/a", to tell it from an F1 of 0.

    More than 8 SAEs or 120 bars are drawn as a heat map with one row per SAE and one column per concept, where NaN is
    hatched and standard deviations are not shown.

    Args:
        f1_by_sae: F1 per concept, shape `(n_concepts,)`, by name of the SAE; in [0, 1] or NaN.
        concept_names: One name per concept.
        std_by_sae: Standard deviation per concept, shape `(n_concepts,)`, by name of the SAE, drawn as error bars
            within 0 to 1.
        title: Title of the figure.
        y_label: Definition of the F1 that is drawn, such as "F1 (mean of the 5 best latents)".

    Returns:
        A figure with one panel, and a color bar if it is a heat map.

    Raises:
        ValueError: If there is no SAE or no concept, a shape is wrong, an F1 lies outside [0, 1], a standard deviation
            is negative, or `std_by_sae` names an SAE that is not in `f1_by_sae`.
    """
    n_concepts = len(concept_names)
    if not f1_by_sae:
        raise ValueError("`f1_by_sae` must hold at least one SAE, got none.")
    if n_concepts == 0:
        raise ValueError("`concept_names` must hold at least one concept, got none.")
    values = {}
    for name, f1 in f1_by_sae.items():
        values[name] = float_array(f"f1_by_sae[{name!r}]", f1, (n_concepts,))
        if (values[name] < 0).any() or (values[name] > 1 + 1e-6).any():
            raise ValueError(f"`f1_by_sae[{name!r}]` must lie in [0, 1], got {f1.tolist()}.")
    stds = {}
    for name, std in (std_by_sae or {}).items():
        if name not in values:
            valid = ", ".join(values)
            raise ValueError(f"`std_by_sae` must name SAEs of `f1_by_sae` ({valid}), got {name!r}.")
        stds[name] = float_array(f"std_by_sae[{name!r}]", std, (n_concepts,))
        if (stds[name] < 0).any():
            raise ValueError(f"`std_by_sae[{name!r}]` must not be negative, got {std.tolist()}.")
    if len(values) > MAX_SAES or len(values) * n_concepts > MAX_BARS:
        return _heatmap(values, concept_names, title, y_label)
    return _bars(values, stds, concept_names, title, y_label)


def _bars(
    values: Mapping[str, FloatArray],
    stds: Mapping[str, FloatArray],
    concept_names: Sequence[str],
    title: str,
    y_label: str,
) -> "Figure":
    n_saes, n_concepts = len(values), len(concept_names)
    figure = new_figure(min(16.0, max(5.5, 1.6 + n_concepts * (0.26 * n_saes + 0.32))), 3.9, title)
    axes = figure.add_subplot()
    clean(axes)
    styles = family_styles(values)
    width = 0.82 / n_saes
    for i, (name, f1) in enumerate(values.items()):
        drawn = np.flatnonzero(~np.isnan(f1))
        centers = np.arange(n_concepts) + (i - (n_saes - 1) / 2) * width
        colors = palette(n_concepts) if n_saes == 1 else [styles[name].color] * n_concepts
        axes.bar(
            centers[drawn],
            f1[drawn],
            width=width * 0.92,
            color=[colors[j] for j in drawn],
            label=name,
            zorder=2,
        )
        if name in stds:
            axes.errorbar(
                centers[drawn],
                f1[drawn],
                yerr=np.nan_to_num(stds[name][drawn]),
                fmt="none",
                ecolor=INK,
                elinewidth=0.9,
                capsize=min(3.0, 14 * width),
                zorder=3,
            )
        for j in np.flatnonzero(np.isnan(f1)):
            axes.text(centers[j], 0.015, "n/a", rotation=90, ha="center", fontsize=7, color=MUTED_INK)
        if n_saes == 1 and name not in stds and n_concepts <= 20:
            _write_values(axes, f1)
    axes.set_ylim(0, 1)
    axes.set_xlim(-0.6, n_concepts - 0.4)
    axes.tick_params(axis="x", length=0)
    _concept_ticks(axes, concept_names, figure.get_figwidth() / n_concepts)
    axis_labels(axes, y=y_label)
    if n_saes > 1:
        legend_below(figure, axes.get_legend_handles_labels()[0])
    else:
        axes.set_xlabel(next(iter(values)), fontsize=LABEL_SIZE, color=MUTED_INK)
    return figure


def _write_values(axes: "Axes", f1: FloatArray) -> None:
    """Write each F1 above its bar, or inside the bar if there is no room above it."""
    for j in np.flatnonzero(~np.isnan(f1)):
        inside = f1[j] > 0.94
        axes.text(
            float(j),
            f1[j] - 0.015 if inside else f1[j] + 0.01,
            f"{f1[j]:.2f}",
            ha="center",
            va="top" if inside else "bottom",
            fontsize=TICK_SIZE,
            color="white" if inside else INK,
        )


def _heatmap(values: Mapping[str, FloatArray], concept_names: Sequence[str], title: str, label: str) -> "Figure":
    matrix = np.stack(list(values.values()))
    n_saes, n_concepts = matrix.shape
    width = min(18.0, max(5.5, 2.8 + 0.5 * n_concepts))
    figure = new_figure(width, min(14.0, max(3.2, 1.6 + 0.3 * n_saes)), title)
    axes = figure.add_subplot()
    axes.patch.set(hatch="////", edgecolor="#CCCCCC", facecolor="white")  # visible where a cell is NaN
    image = axes.imshow(np.ma.masked_invalid(matrix), cmap="cividis", vmin=0, vmax=1, aspect="auto")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=TICK_SIZE, labelcolor=INK)
    axes.set_yticks(range(n_saes), list(values))
    _concept_ticks(axes, concept_names, (width - 2.8) / n_concepts)
    if n_concepts <= 30 and n_saes <= 40:
        for (i, j), value in np.ndenumerate(matrix):
            if not np.isnan(value):
                color = "white" if value < 0.55 else INK
                axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color=color)
    bar = figure.colorbar(image, ax=axes, pad=0.02, fraction=0.04)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=TICK_SIZE, length=0)
    bar.set_label(label, fontsize=LABEL_SIZE)
    return figure


def _concept_ticks(axes: "Axes", concept_names: Sequence[str], inches_per_name: float) -> None:
    """Write the names of the concepts under the x axis, slanted if they would overlap."""
    axes.set_xticks(range(len(concept_names)), list(concept_names))
    if max(map(len, concept_names)) * 0.08 > inches_per_name:
        for text in axes.get_xticklabels():
            text.set(rotation=40, ha="right", rotation_mode="anchor")
