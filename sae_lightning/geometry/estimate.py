"""A number that was estimated from samples, with its interval."""

import math
from statistics import NormalDist
from typing import NamedTuple


class Estimate(NamedTuple):
    """A number with its confidence interval; all three are NaN where samples do not suffice."""

    value: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether there is a number."""
        return not math.isnan(self.value)


UNKNOWN = Estimate(math.nan, math.nan, math.nan)


def deviations(confidence: float) -> float:
    """Half the width of a normal distribution's central interval, in standard deviations.

    Raises:
        ValueError: If `confidence` does not lie between 0 and 1.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, both excluded, but is {confidence}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
