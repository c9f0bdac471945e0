"""Comparison of the concepts that a trained SAE finds with the bound of its architecture."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from torch import Tensor

from sae_lightning.geometry.bounds import Bound
from sae_lightning.geometry.estimate import UNKNOWN, Estimate

State = Literal["found", "missed", "out of reach", "hidden", "no samples"]


class Sight(NamedTuple):
    """How well one SAE sees one concept."""

    best_f1: float
    """F1 of its best latent; NaN for a concept without samples."""
    bound: Estimate
    """Best F1 that any latent of its architecture can reach; unknown if no bound was fitted."""
    state: State
    """Found: the F1 of the best latent reaches `found_above`. Missed: it does not, but another latent of the
    architecture could. Out of reach: no latent could. Hidden: it does not, and the bound is unknown."""


def sights(best_f1: Tensor, bound: Bound | None, found_above: float) -> list[Sight]:
    """Compare the F1 of an SAE with its bound for each concept.

    A concept is out of reach if the upper end of the bound's interval is below `found_above`.

    Args:
        best_f1: F1 of the best latent for each concept, `(n_concepts,)`.
        bound: Bound of its architecture; None if unknown.
        found_above: Least F1 with which a concept counts as found.

    Returns:
        One result per concept.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry import sights
        >>> [sight.state for sight in sights(torch.tensor([0.95, 0.3]), None, found_above=0.9)]
        ['found', 'hidden']
    """
    limits: Sequence[Estimate] = [UNKNOWN] * len(best_f1)
    if bound is not None:
        columns = zip(bound.f1.tolist(), bound.low.tolist(), bound.high.tolist(), strict=True)
        limits = [Estimate(*column) for column in columns]
    pairs = zip(best_f1.double().tolist(), limits, strict=True)
    return [Sight(f1, limit, _state(f1, limit, found_above)) for f1, limit in pairs]


def _state(f1: float, bound: Estimate, found_above: float) -> State:
    if math.isnan(f1):
        return "no samples"
    if f1 >= found_above:
        return "found"
    if not bound.known:
        return "hidden"
    return "out of reach" if bound.high < found_above else "missed"
