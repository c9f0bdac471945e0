"""Where the codes of each projection are nonzero, found without a sort of the pre-codes.

On the CPU the searches run in numpy, whose comparisons and index searches are several times faster than torch's. Every
search keeps NaN, so that a broken encoder shows in the loss instead of vanishing from the codes.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_lightning.backends.sparse.codes import Pattern
from sae_lightning.nn.search import LEAST_GROUPS, group_maxima, largest_positions, simplex_threshold


def above(v: Tensor, threshold: Tensor | float) -> Pattern:
    """Positions where pre-codes exceed a threshold (or are NaN).

    Args:
        v: Pre-codes, `(n, d_sae)`.
        threshold: A number, `(d_sae,)` or `(n, 1)`.
    """
    if v.device.type == "cpu":
        bound = threshold.detach().numpy() if isinstance(threshold, Tensor) else threshold
        mask = np.less_equal(v.detach().numpy(), bound)
        positions = torch.from_numpy(np.flatnonzero(np.logical_not(mask, out=mask)))
    else:
        positions = (~(v <= threshold)).flatten().nonzero().squeeze(-1)
    return Pattern(positions, *v.shape)


def largest(v: Tensor, k: int) -> Pattern:
    """Positions of the k largest pre-codes of each row, without those that are not positive.

    Args:
        v: Pre-codes, `(n, d_sae)`.
        k: How many, from 1 to `d_sae`.
    """
    return Pattern(largest_positions(v, k), *v.shape)


def _kept(pattern: Pattern, mask: NDArray[np.bool_]) -> Pattern:
    if mask.all():
        return pattern
    return Pattern(torch.from_numpy(pattern.positions.numpy()[mask]), pattern.n, pattern.d_sae)


def simplex_support(v: Tensor) -> Pattern:
    """Positions where the projection onto the simplex is positive.

    Args:
        v: Pre-codes, `(n, d_sae)`.
    """
    largest_ = v.amax(-1, keepdim=True)
    if v.device.type != "cpu" or len(v) == 0:
        shifted = v - largest_
        return above(shifted, simplex_threshold(shifted))
    maxima = group_maxima(v, LEAST_GROUPS)
    below = -1.0 if maxima is None else simplex_threshold(maxima - largest_)
    # the bound lies below the threshold; what rounding may take from it is given back
    bound = largest_ + below - 8 * torch.finfo(v.dtype).eps * (1 + largest_.abs())
    pattern = above(v, bound + 0 * largest_)  # NaN for a row that overflowed, so that all of it is kept
    values = (pattern.of(v) - largest_.flatten().index_select(0, pattern.samples)).double().numpy()
    offsets = pattern.offsets.numpy()
    starts, counts = offsets[:-1], np.diff(offsets)
    keep, count = np.ones(len(values), dtype=bool), counts
    while True:  # Newton's steps as above, on what is left of each row (never empty: it holds the maximum)
        tau = (np.add.reduceat(np.where(keep, values, 0.0), starts) - 1) / count
        keep = ~(values <= np.repeat(tau, counts))
        fewer = np.add.reduceat(keep, starts, dtype=np.int64)
        if not (fewer < count).any():
            return _kept(pattern, keep)
        count = fewer
