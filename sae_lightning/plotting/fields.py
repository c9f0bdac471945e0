"""Receptive fields of single latents over two-dimensional data."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from torch import Tensor

from sae_lightning.nn.firing import FIRING_THRESHOLD
from sae_lightning.plotting._checks import FloatArray, IntArray, check_length, float_array, label_array
from sae_lightning.plotting._figures import (
    LABEL_SIZE,
    TICK_SIZE,
    axis_labels,
    clean,
    is_bottom,
    is_left,
    legend_right,
    panel_columns,
    panel_grid,
    panel_title,
)
from sae_lightning.plotting.colors import INK
from sae_lightning.plotting.scatter import concept_handles, draw_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from matplotlib.lines import Line2D

MAX_POINTS_PER_PANEL: Final = 3_000
MAX_PANELS: Final = 48
_ARROW_SHARE: Final = 0.3
_STAR_COLOR: Final = "#FFD700"
_FIELD_COLORS: Final = ("#E3E9EF", "#B4C1CF", "#5C7087")  # faintest to strongest code; white is reserved for zero


def receptive_fields(
    grid_codes: Tensor,
    extent: tuple[float, float, float, float],
    points: Tensor,
    concepts: Tensor,
    concept_names: Sequence[str],
    *,
    prototypes: Tensor | None = None,
    directions: Tensor | None = None,
    origin: tuple[float, float] = (0.0, 0.0),
    titles: Sequence[str] | None = None,
    title: str | None = "Receptive fields",
) -> "Figure":
    r"""Draw the receptive field of each latent in the plane and the data, one panel per latent.

    The receptive field of latent i is $\{x : z_i(x) \neq 0\}$. The shade is $|z_i|$ divided by its maximum on the grid,
    white where the latent does not fire. The dark line is the boundary of the field, where $|z_i|$ crosses 1e-6. Small
    points are the data, at most 3,000 of them. A latent that does not fire on the grid is marked as silent.

    Args:
        grid_codes: Codes on a regular grid, shape `(n_latents, height, width)`: entry `[i, r, c]` belongs to
            `x = linspace(x_min, x_max, width)[c]` and `y = linspace(y_min, y_max, height)[r]`.
        extent: Limits `(x_min, x_max, y_min, y_max)` of the grid and of the panels.
        points: The data, shape `(n, 2)`.
        concepts: Concept of each point, integers of shape `(n,)`; -1 is unlabeled and drawn in gray.
        concept_names: One name per concept.
        prototypes: Prototype of each latent, shape `(n_latents, 2)`, drawn as a star.
        directions: Encoder direction of each latent, shape `(n_latents, 2)`, drawn as an arrow of fixed length unless
            it is zero.
        origin: Start of the arrows, the origin of the encoder.
        titles: Title of each latent; by default "latent 0", "latent 1", ... in the order given.
        title: Title over all panels.

    Returns:
        A figure with one panel per latent, a color bar and a legend.

    Raises:
        ValueError: If a shape is wrong, the grid is smaller than 2 x 2 or not finite, there are no latents or more than
            48, `extent` is empty, or a concept has no name.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.
    """
    codes = np.abs(float_array("grid_codes", grid_codes, (None, None, None)))
    n_latents, height, width = codes.shape
    if not 1 <= n_latents <= MAX_PANELS or height < 2 or width < 2:
        raise ValueError(
            f"`grid_codes` must hold 1 to {MAX_PANELS} latents (select some, for example the best one per concept) "
            f"on a grid of at least 2 x 2, got shape {codes.shape}."
        )
    if not np.isfinite(codes).all():
        raise ValueError("`grid_codes` must be finite, got NaN or infinite values.")
    x_min, x_max, y_min, y_max = extent
    if not (x_min < x_max and y_min < y_max):
        raise ValueError(f"`extent` must be (x_min, x_max, y_min, y_max) with min < max, got {extent}.")
    xy = float_array("points", points, (None, 2))
    labels = label_array("concepts", concepts, len(xy), concept_names, "concept_names")
    stars = None if prototypes is None else float_array("prototypes", prototypes, (n_latents, 2))
    arrows = None if directions is None else float_array("directions", directions, (n_latents, 2))
    if titles is not None:
        check_length("titles", titles, n_latents, "one per latent")

    ratio = min(1.6, max(0.6, (y_max - y_min) / (x_max - x_min)))
    figure, panels = panel_grid(n_latents, (2.4, 2.4 * ratio + 0.22), (0.4, 1.35), title=title)
    for i, axes in enumerate(panels):
        clean(axes, grid=None)
        image = _draw_field(axes, codes[i], extent)
        draw_points(axes, xy, labels, len(concept_names), size=5.0, alpha=0.7, max_points=MAX_POINTS_PER_PANEL)
        if stars is not None:
            axes.plot(*stars[i], marker="*", markersize=13, color=_STAR_COLOR, markeredgecolor=INK, zorder=5)
        if arrows is not None:
            _draw_arrow(axes, arrows[i], origin, min(x_max - x_min, y_max - y_min))
        axes.set(xlim=(x_min, x_max), ylim=(y_min, y_max), aspect="equal")
        name = f"latent {i}" if titles is None else titles[i]
        panel_title(axes, name if codes[i].max() > FIRING_THRESHOLD else f"{name} (silent)")
        axis_labels(axes, "$x_1$" if is_bottom(i, n_latents) else None, "$x_2$" if is_left(i, n_latents) else None)
    shrink = min(0.8, 1.3 / panel_columns(n_latents))
    bar = figure.colorbar(image, ax=panels, location="bottom", shrink=shrink, aspect=24, pad=0.03)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=TICK_SIZE, length=0)
    bar.set_label("|code| / latent's maximum", fontsize=LABEL_SIZE)
    handles = _legend_handles(labels, concept_names, stars is not None, arrows is not None)
    legend_right(figure, handles)
    return figure


def _draw_field(axes: "Axes", code: FloatArray, extent: tuple[float, float, float, float]) -> "AxesImage":
    """Draw one field of codes `(height, width)` and its boundary, and return the image for the color bar."""
    from matplotlib.colors import LinearSegmentedColormap

    height, width = code.shape
    x_min, x_max, y_min, y_max = extent
    # imshow expects the edges of the outer pixels, `extent` holds their centers
    half_x, half_y = (x_max - x_min) / (width - 1) / 2, (y_max - y_min) / (height - 1) / 2
    maximum = max(float(code.max()), FIRING_THRESHOLD)
    colors = LinearSegmentedColormap.from_list("field", _FIELD_COLORS)
    image = axes.imshow(
        np.ma.masked_where(code <= FIRING_THRESHOLD, code / maximum),
        extent=(x_min - half_x, x_max + half_x, y_min - half_y, y_max + half_y),
        origin="lower",
        cmap=colors,
        vmin=0,
        vmax=1,
        interpolation="bilinear",
        zorder=0,
    )
    if code.min() <= FIRING_THRESHOLD < code.max():  # otherwise contour warns that there is no boundary
        axes.contour(
            np.linspace(x_min, x_max, width),
            np.linspace(y_min, y_max, height),
            code,
            levels=[FIRING_THRESHOLD],
            colors=INK,
            linewidths=1.4,
            zorder=4,
        )
    return image


def _draw_arrow(axes: "Axes", direction: FloatArray, origin: tuple[float, float], side: float) -> None:
    """Draw an arrow from `origin` along `direction`, with a length that is a fixed share of `side`."""
    norm = float(np.linalg.norm(direction))
    if norm == 0:
        return
    tip = np.asarray(origin) + direction / norm * side * _ARROW_SHARE
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 2.0, "mutation_scale": 14}
    style |= {"shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(float(tip[0]), float(tip[1])), xytext=origin, arrowprops=style, zorder=5)
    axes.plot(*origin, marker="o", markersize=4, color=INK, zorder=5)


def _legend_handles(
    labels: IntArray, concept_names: Sequence[str], has_stars: bool, has_arrows: bool
) -> "list[Line2D]":
    from matplotlib.lines import Line2D

    handles = concept_handles(labels, concept_names)
    handles.append(Line2D([], [], color=INK, linewidth=1.4, label="field's boundary"))
    if has_stars:
        star = Line2D([], [], linestyle="none", marker="*", markersize=12, color=_STAR_COLOR, label="prototype")
        star.set_markeredgecolor(INK)
        handles.append(star)
    if has_arrows:
        handles.append(Line2D([], [], color=INK, marker=">", linewidth=1.8, label="encoder direction"))
    return handles
