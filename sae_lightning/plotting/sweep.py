"""F1, error and other metrics against L0, for sweeps over the sparsity strength."""

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from sae_lightning.plotting._checks import check_length, float_array
from sae_lightning.plotting._figures import axis_labels, is_left, panel_title
from sae_lightning.plotting._sweeps import SweepPoint, Value, check_points, small_multiples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCALAR_LABELS: Final = {
    "nmse": "normalized MSE",
    "mse": "MSE",
    "dead_latents": "dead latents (share)",
    "stable_rank_codes": "stable rank of codes",
    "stable_rank_latents": "stable rank of latents",
    "monosemanticity": "monosemanticity",
    "f1": "mean F1",
}
LOG_SCALARS: Final = ("nmse", "mse")


def f1_against_l0(
    points: Sequence[SweepPoint],
    concept_names: Sequence[str],
    *,
    reference: Sequence[SweepPoint] = (),
    groups: Mapping[str, Sequence[int]] | None = None,
    title: str | None = "F1 of the concepts against sparsity",
    y_label: str = "F1 (mean of the 5 best latents)",
    reference_label: str = "paper",
    log_l0: bool = False,
) -> "Figure":
    """Draw F1 against L0, one panel per concept and one line per SAE family.

    The reference is drawn with dashed lines and hollow markers, in the colors of the same families. Points with an F1
    of NaN are left out of the panel.

    Args:
        points: The trained SAEs.
        concept_names: One name per concept.
        reference: Points to compare with, for example the paper's.
        groups: Panels that show the mean F1 of several concepts, by name, for example
            `{"linearly separable": [0, 2, 4], "not separable": [1, 3, 5]}`; means ignore NaN. By default each concept
            has a panel.
        title: Title over all panels.
        y_label: Definition of the F1 that is drawn.
        reference_label: Name of the reference in the legend.
        log_l0: Whether L0 is drawn on a logarithmic scale.

    Returns:
        A figure with one panel per concept or group, and a legend on the right.

    Raises:
        ValueError: If there are no points or no panels, an `f1` does not have one entry per concept, a group is empty,
            or a group lists a concept that does not exist.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.
    """
    check_points(points)
    n_concepts = len(concept_names)
    for argument, sweep in (("points", points), ("reference", reference)):
        for i, point in enumerate(sweep):
            float_array(f"{argument}[{i}].f1", point.f1, (n_concepts,))
    panels: Mapping[str, Sequence[int]] = (
        {name: [i] for i, name in enumerate(concept_names)} if groups is None else groups
    )
    if groups is None:
        check_length("concept_names", list(panels), n_concepts, "names must differ")
    for name, members in panels.items():
        if not members or min(members) < 0 or max(members) >= n_concepts:
            raise ValueError(
                f"`groups[{name!r}]` must list at least one concept between 0 and {n_concepts - 1}, got {members}."
            )
    if not panels:
        raise ValueError("`concept_names` and `groups` must define at least one panel, got none.")

    def mean_f1(members: Sequence[int]) -> Value:
        def value(point: SweepPoint) -> tuple[float, float]:
            f1 = point.f1.detach().double().cpu()[list(members)]
            return point.l0, float(f1.nanmean())

        return value

    figure = small_multiples(
        (points, reference),
        {name: mean_f1(members) for name, members in panels.items()},
        title,
        reference_label,
        log_x=log_l0,
        share_y=True,
    )
    for i, axes in enumerate(figure.axes):
        axes.set_ylim(-0.03, 1.03)
        axis_labels(axes, y=y_label if is_left(i, len(panels)) else None)
    return figure


def nmse_against_l0(
    points: Sequence[SweepPoint],
    concept_names: Sequence[str],
    *,
    reference: Sequence[SweepPoint] = (),
    title: str | None = "Normalized MSE of the concepts against their own sparsity",
    reference_label: str = "paper",
) -> "Figure":
    """Draw the normalized MSE of each concept against the L0 on its samples, one panel per concept, log-log.

    The L0 is that of the concept because an SAE may use more latents on concepts of higher dimension. Points with
    missing or non-positive values are left out of the panel.

    Args:
        points: The trained SAEs, with `l0_per_concept` and `nmse_per_concept`.
        concept_names: One name per concept.
        reference: Points to compare with, for example the paper's.
        title: Title over all panels.
        reference_label: Name of the reference in the legend.

    Returns:
        A figure with one panel per concept, and a legend on the right.

    Raises:
        ValueError: If there are no points or no concepts, names repeat, a tensor does not have one entry per concept,
            or no point has both tensors.
    """
    check_points(points)
    n_concepts = len(concept_names)
    check_length("concept_names", list(dict.fromkeys(concept_names)), n_concepts, "names must differ")
    if not concept_names:
        raise ValueError("`concept_names` must hold at least one name, got none.")
    for argument, sweep in (("points", points), ("reference", reference)):
        for i, point in enumerate(sweep):
            for name in ("l0_per_concept", "nmse_per_concept"):
                if (values := getattr(point, name)) is not None:
                    float_array(f"{argument}[{i}].{name}", values, (n_concepts,))
    if all(point.l0_per_concept is None or point.nmse_per_concept is None for point in points):
        raise ValueError("`points` must have `l0_per_concept` and `nmse_per_concept` to be drawn, but none has both.")

    def own(concept: int) -> Value:
        def value(point: SweepPoint) -> tuple[float, float]:
            if point.l0_per_concept is None or point.nmse_per_concept is None:
                return np.nan, np.nan
            l0, nmse = float(point.l0_per_concept[concept]), float(point.nmse_per_concept[concept])
            return (l0, nmse) if l0 > 0 and nmse > 0 else (np.nan, np.nan)

        return value

    panels = {name: own(i) for i, name in enumerate(concept_names)}
    label = "L0 on the concept's samples"
    figure = small_multiples(
        (points, reference), panels, title, reference_label, x_label=label, log_x=True, share_y=True
    )
    for i, axes in enumerate(figure.axes):
        axes.set_yscale("log")
        axis_labels(axes, y="normalized MSE" if is_left(i, n_concepts) else None)
    return figure


def sweep_scalars(
    points: Sequence[SweepPoint],
    names: Sequence[str] | None = None,
    *,
    reference: Sequence[SweepPoint] = (),
    labels: Mapping[str, str] | None = None,
    log_y: Collection[str] = LOG_SCALARS,
    title: str | None = "Metrics against sparsity",
    reference_label: str = "paper",
    log_l0: bool = False,
) -> "Figure":
    """Draw scalar metrics against L0, one panel per metric and one line per SAE family.

    Points where a metric is missing, NaN, or not positive on a logarithmic axis are left out of the panel.

    Args:
        points: The trained SAEs, with `scalars`.
        names: The scalars to draw, in order; by default all scalars of `points`.
        reference: Points to compare with, for example the paper's.
        labels: Panel titles by name, in addition to those of the package's metrics. Names in `labels` and `log_y` may
            omit the prefix `train/`, `val/` or `test/`.
        log_y: Names of the scalars with a logarithmic y axis.
        title: Title over all panels.
        reference_label: Name of the reference in the legend.
        log_l0: Whether L0 is drawn on a logarithmic scale.

    Returns:
        A figure with one panel per scalar, and a legend on the right.

    Raises:
        ValueError: If there are no points, they have no scalars, or one of `names` is not a scalar of any point.
    """
    check_points(points)
    known = dict.fromkeys(name for point in points for name in point.scalars or {})
    names = list(known) if names is None else names
    if not names:
        raise ValueError("`names` must hold at least one scalar, and `points` have none.")
    for name in names:
        if name not in known:
            valid = ", ".join(known) or "none"
            raise ValueError(f"`names` must be scalars of `points` ({valid}), got {name!r}.")

    def scalar(name: str) -> Value:
        def value(point: SweepPoint) -> tuple[float, float]:
            found = float((point.scalars or {}).get(name, np.nan))
            return point.l0, np.nan if _listed(name, log_y) and found <= 0 else found

        return value

    texts = {**SCALAR_LABELS, **(labels or {})}
    figure = small_multiples(
        (points, reference),
        {name: scalar(name) for name in names},
        title,
        reference_label,
        log_x=log_l0,
        share_y=False,
    )
    for name, axes in zip(names, figure.axes, strict=True):
        panel_title(axes, texts.get(name, texts.get(_short(name), name)))
        if _listed(name, log_y):
            axes.set_yscale("log")
        elif axes.get_ylim()[0] < 0 <= axes.dataLim.y0:
            axes.set_ylim(bottom=0 if axes.dataLim.y0 > 0 else None)
    return figure


def _short(name: str) -> str:
    """Remove the stage from a log key: "nmse" for "val/nmse"."""
    stage, _, rest = name.partition("/")
    return rest if rest and stage in ("train", "val", "test") else name


def _listed(name: str, names: Collection[str]) -> bool:
    return name in names or _short(name) in names
