"""Heat maps of similarity matrices with rows ordered by group."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from sae_lightning.plotting._checks import IntArray, float_array, label_array
from sae_lightning.plotting._figures import LABEL_SIZE, TICK_SIZE, axis_labels, new_figure, panel_grid, panel_title
from sae_lightning.plotting.colors import INK, MUTED_INK, UNLABELED_COLOR, palette

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_ROWS: Final = 1_500
# seaborn's "rocket" with white at zero
_SEQUENTIAL: Final = ("#FFFFFF", "#F9C9A8", "#F37651", "#E13342", "#AD1759", "#701F57", "#35193E", "#03051A")
_STRIP: Final = 0.018  # width of the colored strip along the axes, as a share of the axes
_LETTER: Final = 0.017  # width of a letter of the groups' names, as a share of the axes


def order_by_group(groups: Tensor) -> Tensor:
    """Return indices that sort rows by group, stably, with rows of no group last.

    Args:
        groups: Group per row, integers of shape `(n,)`; negative for rows of no group.

    Returns:
        Indices `order` of shape `(n,)`; `matrix[order][:, order]` and `groups[order]` are arguments of
        :func:`similarity_heatmap`.

    Raises:
        ValueError: If `groups` is not one-dimensional.

    Example:
        >>> import torch
        >>> from sae_lightning.plotting import order_by_group
        >>> order_by_group(torch.tensor([1, -1, 0, 1, 0]))
        tensor([2, 4, 0, 3, 1])
    """
    if groups.dim() != 1:
        raise ValueError(f"`groups` must have shape (any), got {tuple(groups.shape)}.")
    last = groups.max() + 1 if len(groups) else 0
    return torch.argsort(torch.where(groups < 0, last, groups), stable=True)


def similarity_heatmap(
    matrix: Tensor,
    groups: Tensor,
    group_names: Sequence[str],
    title: str = "Similarity",
    *,
    vmin: float = 0.0,
    vmax: float = 1.0,
    items: str = "samples",
    label: str = "cosine similarity",
) -> "Figure":
    """Draw a heat map of an item-by-item matrix, with boundaries between groups and their names along both axes.

    Items are, for example, samples ordered by concept or latents ordered by preferred concept. Above 1,500 rows, evenly
    spaced rows of each group are drawn, at least one each; cells are never averaged. The color map is diverging if
    `vmin < 0`.

    Args:
        matrix: Similarities, shape `(n, n)`; NaN is drawn in gray.
        groups: Group per row, integers of shape `(n,)`, with the rows of a group adjacent; -1 is named "none".
        group_names: One name per group.
        title: Title of the figure.
        vmin: Lower limit of the color scale.
        vmax: Upper limit of the color scale.
        items: Name of the items for the axis labels, "samples" or "latents".
        label: Label of the color bar.

    Returns:
        A figure with one panel and a color bar.

    Raises:
        ValueError: If shapes are wrong, a group has no name or its rows are not adjacent, or `vmin >= vmax`.
    """
    figure = new_figure(6.4, 5.6, title)
    axes = figure.add_subplot()
    shown = _draw_map(axes, ("matrix", matrix), ("groups", groups), group_names, (vmin, vmax))
    axis_labels(axes, x=f"{len(matrix):,} {items}{shown}", y=items)
    _color_bar(figure, [axes], label)
    return figure


def similarity_heatmaps(
    maps: Mapping[str, tuple[Tensor, Tensor]],
    group_names: Sequence[str],
    title: str | None = "Similarity",
    *,
    vmin: float = 0.0,
    vmax: float = 1.0,
    items: str = "latents",
    label: str = "cosine similarity",
) -> "Figure":
    """Draw several heat maps side by side with one color scale, for example one per SAE.

    Each is drawn as by :func:`similarity_heatmap`; their numbers of rows may differ.

    Args:
        maps: Matrix `(n, n)` and group per row `(n,)` by panel title.
        group_names: One name per group.
        title: Title over all panels.
        vmin: Lower limit of the color scale.
        vmax: Upper limit of the color scale.
        items: Name of the items for the axis labels, "samples" or "latents".
        label: Label of the color bar.

    Returns:
        A figure with one panel per map and a color bar.

    Raises:
        ValueError: If there are no maps, or one is not valid for :func:`similarity_heatmap`.
    """
    if not maps:
        raise ValueError("`maps` must hold at least one matrix, got none.")
    figure, grid = panel_grid(len(maps), (3.3, 3.9), (0.9, 0.3), title=title, share_x=False, share_y=False)
    for axes, (name, (matrix, groups)) in zip(grid, maps.items(), strict=True):
        arguments = (f"maps[{name!r}][0]", matrix), (f"maps[{name!r}][1]", groups)
        shown = _draw_map(axes, *arguments, group_names, (vmin, vmax), panel_share=0.5)
        panel_title(axes, name)
        axis_labels(axes, x=f"{len(matrix):,} {items}{shown}")
    _color_bar(figure, grid, label)
    return figure


def _draw_map(
    axes: "Axes",
    matrix: tuple[str, Tensor],
    groups: tuple[str, Tensor],
    group_names: Sequence[str],
    limits: tuple[float, float],
    panel_share: float = 1.0,
) -> str:
    """Check and draw one matrix with its groups, both given with the name of their argument.

    Returns:
        A note for the axis label if not all rows are drawn, otherwise an empty string.
    """
    from matplotlib.colors import LinearSegmentedColormap

    name, tensor = matrix
    values = float_array(name, tensor, (None, tensor.shape[0] if tensor.dim() else None))
    labels = label_array(*groups, len(values), group_names, "group_names")
    if len(values) == 0:
        raise ValueError(f"`{name}` must have at least one row, got shape (0, 0).")
    vmin, vmax = limits
    if vmin >= vmax:
        raise ValueError(f"`vmin` must be below `vmax`, got {vmin} and {vmax}.")
    if len(_starts(labels)) != len(np.unique(labels)):
        raise ValueError(
            f"`{groups[0]}` must keep the rows of a group next to each other: reorder `{name}` and `{groups[0]}` by "
            f"`order_by_group`. Got {len(_starts(labels))} runs of {len(np.unique(labels))} groups."
        )
    n_items = len(values)
    if n_items > MAX_ROWS:
        kept = _thinned(labels)
        values, labels = values[np.ix_(kept, kept)], labels[kept]
    axes.imshow(
        np.ma.masked_invalid(values),
        cmap="RdBu_r" if vmin < 0 else LinearSegmentedColormap.from_list("similarity", _SEQUENTIAL),
        vmin=vmin,
        vmax=vmax,
        interpolation="nearest",
        aspect="equal",
    )
    axes.set_facecolor("#D9D9D9")
    for spine in axes.spines.values():
        spine.set(color=MUTED_INK, linewidth=0.8)
    _draw_groups(axes, labels, group_names, panel_share)
    return f", {len(values):,} shown" if len(values) < n_items else ""


def _color_bar(figure: "Figure", panels: "Sequence[Axes]", label: str) -> None:
    bar = figure.colorbar(panels[0].images[0], ax=list(panels), pad=0.02, shrink=0.8, aspect=28)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=TICK_SIZE, length=0)
    bar.set_label(label, fontsize=LABEL_SIZE)


def _draw_groups(axes: "Axes", labels: IntArray, group_names: Sequence[str], panel_share: float) -> None:
    """Draw lines between groups, and along both axes a strip in the groups' colors and their names.

    Args:
        axes: Axes of the panel.
        labels: Group per row.
        group_names: One name per group.
        panel_share: Width of the panel relative to that of a figure with one panel.
    """
    from matplotlib.patches import Rectangle

    starts = _starts(labels)
    ends = np.append(starts[1:], len(labels))
    colors = [*palette(len(group_names)), UNLABELED_COLOR]  # group -1 indexes the last one
    names = [*group_names, "none"]
    for start in starts[1:]:
        axes.axhline(start - 0.5, color=INK, linewidth=0.7)
        axes.axvline(start - 0.5, color=INK, linewidth=0.7)
    for start, end in zip(starts, ends, strict=True):
        color = colors[labels[start]]
        strip = {"facecolor": color, "edgecolor": "white", "linewidth": 0.4, "clip_on": False}
        begin, length = float(start) - 0.5, float(end - start)
        across = (-_STRIP - 0.006, _STRIP)
        for corner, size, transform in (
            ((begin, across[0]), (length, across[1]), axes.get_xaxis_transform()),
            ((across[0], begin), (across[1], length), axes.get_yaxis_transform()),
        ):
            axes.add_patch(Rectangle(corner, *size, transform=transform, **strip))
    centers = _spread((starts + ends - 1) / 2, len(labels), 0.034 / panel_share)
    ticks = [names[labels[start]] for start in starts]
    axes.set_xticks(centers, ticks)
    axes.set_yticks(centers, ticks)
    text_size = TICK_SIZE if len(ticks) <= 30 else max(4.0, TICK_SIZE * 30 / len(ticks))
    axes.tick_params(length=0, pad=10, labelsize=text_size, labelcolor=INK)
    widths = np.array([len(tick) for tick in ticks]) * _LETTER / panel_share * len(labels)
    if (np.diff(centers) < (widths[1:] + widths[:-1]) / 2).any():
        for text in axes.get_xticklabels():
            text.set(rotation=90)


def _starts(labels: IntArray) -> IntArray:
    """Return the first row of each run of equal labels."""
    return np.flatnonzero(np.diff(labels, prepend=labels[0] - 1))


def _thinned(labels: IntArray) -> IntArray:
    """Return about `MAX_ROWS` rows, evenly spaced within each group and at least one per group."""
    starts = _starts(labels)
    ends = np.append(starts[1:], len(labels))
    kept = []
    for start, end in zip(starts, ends, strict=True):
        n_kept = max(1, int((end - start) * MAX_ROWS / len(labels)))
        kept.append(start + (np.arange(n_kept) * (end - start)) // n_kept)
    return np.concatenate(kept)


def _spread(centers: "np.typing.NDArray[np.float64]", n_rows: int, least: float) -> "np.typing.NDArray[np.float64]":
    """Move the names of small groups apart, to a distance of at least the share `least` of all rows."""
    gap = min(least * n_rows, n_rows / len(centers))
    placed = centers.copy()
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    placed[-1] = min(placed[-1], max(n_rows - 1.0, 0.0))
    for i in range(len(placed) - 2, -1, -1):
        placed[i] = min(placed[i], placed[i + 1] - gap)
    return placed
