"""F1 that trained SAEs achieve against the bounds of their architectures."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from sae_lightning.plotting._checks import float_array
from sae_lightning.plotting._figures import TICK_SIZE, axis_labels, clean, legend_right, new_figure
from sae_lightning.plotting.colors import MUTED_INK, family_styles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_NAMES = 60  # number of points above which names would overlap
_WORTH_A_NAME = 0.1  # smallest gap between bound and achieved F1 at which a point is named


def achieved_f1(
    points: Mapping[str, Tensor],
    concept_names: Sequence[str],
    found_above: float,
    *,
    families: Mapping[str, str] | None = None,
    title: str = "Best F1 of each concept: achieved against possible",
) -> "Figure":
    """Draw the F1 of the best latent against the bound of the architecture, one point per concept and SAE.

    Points on the diagonal reach the bound; points below it show what training missed. Horizontal bars are intervals of
    the bound. Concepts more than 0.1 below their bound are named if there are at most 60 points.

    Args:
        points: Achieved F1, bound, and lower and upper end of the bound's interval, `(n_concepts, 4)`, by SAE; NaN
            where unknown.
        concept_names: One name per concept.
        found_above: Smallest F1 of a concept that counts as found, drawn as lines.
        families: Family of each SAE, which determines color and marker; by default its name.
        title: Title of the figure.

    Returns:
        A figure with one panel and a legend on its right.

    Raises:
        ValueError: If there is no SAE, or a shape is wrong.
    """
    if not points:
        raise ValueError("`points` must hold at least one SAE, got none.")
    arrays = {name: float_array(f"points[{name!r}]", p, (len(concept_names), 4)) for name, p in points.items()}
    kinds = {name: (families or {}).get(name, name) for name in points}
    styles = family_styles(kinds.values())
    figure = new_figure(5.4, 5.2, title)
    axes = figure.add_subplot()
    clean(axes, grid="both")
    axes.plot([0, 1], [0, 1], color=MUTED_INK, linewidth=1, zorder=1)
    for draw in (axes.axhline, axes.axvline):
        draw(found_above, color=MUTED_INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
    labeled: set[str] = set()
    for name, array in arrays.items():
        achieved, bound, low, high = array.T
        style, kind = styles[kinds[name]], kinds[name]
        axes.errorbar(
            bound,
            achieved,
            xerr=np.nan_to_num(np.stack([bound - low, high - bound])).clip(min=0),
            fmt=style.marker,
            color=style.color,
            markersize=5.5,
            alpha=0.85,
            elinewidth=0.9,
            linestyle="none",
            label=kind if kind not in labeled else f"_{name}",
            zorder=3,
        )
        labeled.add(kind)
    if len(arrays) * len(concept_names) <= _MOST_NAMES:
        for array in arrays.values():
            for concept, (achieved, bound, *_) in zip(concept_names, array, strict=True):
                if bound - achieved > _WORTH_A_NAME:
                    axes.annotate(
                        concept,
                        (bound, achieved),
                        xytext=(-6, 0),
                        textcoords="offset points",
                        ha="right",
                        va="center",
                        fontsize=TICK_SIZE,
                        color=MUTED_INK,
                    )
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_aspect("equal")
    axis_labels(axes, "bound: best F1 that a single latent could reach", "achieved: F1 of the best latent")
    legend_right(figure, axes.get_legend_handles_labels()[0])
    return figure
