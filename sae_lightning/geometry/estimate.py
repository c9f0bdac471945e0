"""Estimates from samples, with confidence intervals."""

import math
from statistics import NormalDist
from typing import NamedTuple


class Estimate(NamedTuple):
    """A number with its confidence interval; all three are NaN if there were too few samples."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether the number is known."""
        return not math.isnan(self.value)


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def deviations(confidence: float) -> float:
    """Return half the width of a normal distribution's central interval, in standard deviations.

    Raises:
        ValueError: If `confidence` is not between 0 and 1.

    Example:
        >>> from sae_lightning.geometry.estimate import deviations
        >>> round(deviations(0.95), 2)
        1.96
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, both excluded, but is {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
