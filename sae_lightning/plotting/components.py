"""Principal components of activations, and singular values of each concept."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from torch import Tensor

from sae_lightning.plotting._checks import float_array, label_array
from sae_lightning.plotting._figures import TICK_SIZE, axis_labels, clean, legend_right, new_figure
from sae_lightning.plotting.colors import INK, UNLABELED_COLOR, palette
from sae_lightning.plotting.scatter import concept_handles

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_POINTS: Final = 4_000
_REACH: Final = 0.8  # length of a direction, relative to the largest coordinate of the data


def principal_components(
    points: Tensor,
    concepts: Tensor,
    concept_names: Sequence[str],
    *,
    marks: Tensor | None = None,
    marks_are: Literal["prototypes", "directions"] = "prototypes",
    origin: Tensor | None = None,
    title: str | None = "Activations along their principal components",
) -> "Figure":
    """Draw data along its first three principal components, and the encoder rows of an SAE projected onto them.

    Rows are drawn as points if they are prototypes, and as lines of equal length from the origin if they are
    directions. Of more than 4,000 points a fixed random subset is drawn.

    Args:
        points: The data, shape `(n, d)` with `n` and `d` at least 3.
        concepts: Concept of each point, integers of shape `(n,)`; -1 is unlabeled and drawn in gray.
        concept_names: One name per concept.
        marks: Rows of an SAE's encoder, shape `(n_marks, d)`, in the units of the data.
        marks_are: Whether marks are prototypes or directions.
        origin: Start of the directions, shape `(d,)`; None is the mean of the data.
        title: Title of the figure.

    Returns:
        A figure with one 3-D panel, axes labeled with their share of the variance, and a legend on its right.

    Raises:
        ValueError: If shapes are wrong, or a concept has no name.
    """
    x = float_array("points", points, (None, None))
    if min(x.shape) < 3:
        raise ValueError(f"`points` must have at least 3 rows and 3 columns, got shape {x.shape}.")
    labels = label_array("concepts", concepts, len(x), concept_names, "concept_names")
    mean = x.mean(0)
    _, values, components = np.linalg.svd(x - mean, full_matrices=False)
    shares = values**2 / max(float((values**2).sum()), 1e-30)
    shown = (x - mean) @ components[:3].T
    figure = new_figure(5.6, 5.2, title)
    axes = figure.add_subplot(projection="3d")
    order = np.random.default_rng(0).permutation(len(x))[:MAX_POINTS]
    colors = np.array([*palette(len(concept_names)), UNLABELED_COLOR])  # label -1 indexes the last one
    axes.scatter(*shown[order].T, s=5, c=colors[labels[order]].tolist(), alpha=0.5, linewidths=0)
    if marks is not None:
        rows = float_array("marks", marks, (None, x.shape[1]))
        if marks_are == "prototypes":
            axes.scatter(*((rows - mean) @ components[:3].T).T, s=16, c=INK, marker="x", linewidths=0.8)
        else:
            start = mean if origin is None else float_array("origin", origin, (x.shape[1],))
            begin = (start - mean) @ components[:3].T
            unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
            ends = begin + _REACH * float(np.abs(shown).max()) * (unit @ components[:3].T)
            for end in ends:
                axes.plot(*np.stack([begin, end]).T, color=INK, linewidth=0.5, alpha=0.6)
    for name, share in zip("xyz", shares, strict=False):
        getattr(axes, f"set_{name}label")(f"component {'xyz'.index(name) + 1} ({share:.0%})", fontsize=TICK_SIZE)
        getattr(axes, f"{name}axis").set_tick_params(labelsize=TICK_SIZE - 1)
    legend_right(figure, concept_handles(labels, concept_names))
    return figure


def singular_values(
    points: Tensor,
    concepts: Tensor,
    concept_names: Sequence[str],
    *,
    title: str | None = "Singular values of each concept around its mean",
) -> "Figure":
    """Draw the singular values of each concept's activations around their mean, which show its dimension.

    Args:
        points: The data, shape `(n, d)`.
        concepts: Concept of each point, integers of shape `(n,)`; -1 is unlabeled and left out.
        concept_names: One name per concept.
        title: Title of the figure.

    Returns:
        A figure with one line per concept of at least two points: singular values divided by the largest, on a
        logarithmic scale.

    Raises:
        ValueError: If shapes are wrong, or a concept has no name.
    """
    x = float_array("points", points, (None, None))
    labels = label_array("concepts", concepts, len(x), concept_names, "concept_names")
    figure = new_figure(5.2, 4.0, title)
    axes = figure.add_subplot()
    clean(axes, grid="both")
    for concept, color in enumerate(palette(len(concept_names))):
        own = x[labels == concept]
        if len(own) < 2:
            continue
        values = np.linalg.svd(own - own.mean(0), compute_uv=False)
        if values[0] > 0:
            axes.plot(np.arange(1, len(values) + 1), values / values[0], color=color, linewidth=1.6)
    axes.set_yscale("log")
    axes.set_ylim(1e-3, 1.3)
    axis_labels(axes, "rank", "singular value / largest")
    legend_right(figure, concept_handles(labels[labels >= 0], concept_names))
    return figure
