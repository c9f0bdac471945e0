"""What a trained SAE finds of each concept, beside what it could have found."""

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
    """Of its best latent; NaN for a concept without samples."""
    bound: Estimate
    """The best F1 that any latent of its architecture could reach; unknown where no bound was fitted."""
    state: State
    """Found: the best latent's F1 suffices. Missed: it does not, but that of another latent of the architecture could.
    Out of reach: no latent's could. Hidden: it does not, and the bound is not known."""


def sights(best_f1: Tensor, bound: Bound | None, found_above: float) -> list[Sight]:
    """Compare what one SAE achieved with its bound, concept by concept.

    A concept is out of reach where even the upper end of the bound's interval lies below `found_above`.

    Args:
        best_f1: F1 of the best latent for each concept, `(n_concepts,)`.
        bound: Bound of its architecture; None where it is not known.
        found_above: Best F1 from which a concept counts as found.
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
