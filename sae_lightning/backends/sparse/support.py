"""Search for the positions at which the codes of each projection are nonzero, without sorting the pre-codes.

On the CPU the searches run in numpy, which is several times faster than torch at comparisons and index searches. NaN
always counts as found, so that the NaN of a diverged encoder reaches the loss.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_lightning.backends.sparse.codes import Pattern
from sae_lightning.nn.search import LEAST_GROUPS, group_maxima, largest_positions, simplex_threshold


def above(v: Tensor, threshold: Tensor | float) -> Pattern:
    """Return the positions where pre-codes exceed a threshold or are NaN.

    Args:
        v: Pre-codes, `(n, d_sae)`.
        threshold: A number, or a tensor `(d_sae,)` or `(n, 1)`.

    Example:
        >>> import torch
        >>> from sae_lightning.backends.sparse.support import above
        >>> above(torch.tensor([[0.2, 0.7], [0.9, 0.1]]), 0.5).positions.tolist()
        [1, 2]
    """
    if v.device.type == "cpu":
        bound = threshold.detach().numpy() if isinstance(threshold, Tensor) else threshold
        mask = np.less_equal(v.detach().numpy(), bound)
        positions = torch.from_numpy(np.flatnonzero(np.logical_not(mask, out=mask)))
    else:
        positions = (~(v <= threshold)).flatten().nonzero().squeeze(-1)
    return Pattern(positions, *v.shape)


def largest(v: Tensor, k: int) -> Pattern:
    """Return the positions of the k largest pre-codes of each row that are positive.

    Args:
        v: Pre-codes, `(n, d_sae)`.
        k: Number of pre-codes per row, from 1 to `d_sae`.
    """
    return Pattern(largest_positions(v, k), *v.shape)


def _kept(pattern: Pattern, mask: NDArray[np.bool_]) -> Pattern:
    if mask.all():
        return pattern
    return Pattern(torch.from_numpy(pattern.positions.numpy()[mask]), pattern.n, pattern.d_sae)


def simplex_support(v: Tensor) -> Pattern:
    """Return the positions where the projection onto the simplex is positive.

    Args:
        v: Pre-codes, `(n, d_sae)`.
    """
    largest_ = v.amax(-1, keepdim=True)
    if v.device.type != "cpu" or len(v) == 0:
        shifted = v - largest_
        return above(shifted, simplex_threshold(shifted))
    maxima = group_maxima(v, LEAST_GROUPS)
    below = -1.0 if maxima is None else simplex_threshold(maxima - largest_)
    # a lower bound of the threshold, with a margin for rounding errors
    bound = largest_ + below - 8 * torch.finfo(v.dtype).eps * (1 + largest_.abs())
    pattern = above(v, bound + 0 * largest_)  # NaN for a row that overflowed, which keeps the whole row
    values = (pattern.of(v) - largest_.flatten().index_select(0, pattern.samples)).double().numpy()
    offsets = pattern.offsets.numpy()
    starts, counts = offsets[:-1], np.diff(offsets)
    keep, count = np.ones(len(values), dtype=bool), counts
    while True:  # Newton's iteration on the candidates of each row, which always include its maximum
        tau = (np.add.reduceat(np.where(keep, values, 0.0), starts) - 1) / count
        keep = ~(values <= np.repeat(tau, counts))
        fewer = np.add.reduceat(keep, starts, dtype=np.int64)
        if not (fewer < count).any():
            return _kept(pattern, keep)
        count = fewer
