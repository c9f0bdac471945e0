"""The k largest pre-codes and the simplex's threshold, found without a sort of the pre-codes.

On the CPU the searches run in numpy, whose comparisons, partitions and index searches are several times faster than
torch's. Every search keeps NaN, so that a broken encoder shows in the loss instead of vanishing from the codes.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GROUPS = (32, 16, 8, 4)  # sizes of the groups whose maxima stand for all pre-codes
_SHORT_ROW = 1024
_SORTED_ROW = 512  # up to here numpy sorts a row faster than it finds its k-th largest (measured with AVX-512)
_FEW = 32  # pre-codes in which the support of a short row is looked for first
LEAST_GROUPS = 64  # with fewer, maxima say too little about a row's threshold
_ROOM = 2  # groups per wanted code, at least: with fewer, the maxima say too little


def group_maxima(v: Tensor, least: int) -> Tensor | None:
    """The maximum of each of many groups of pre-codes, as few groups as possible but at least `least`.

    Any statement "so many pre-codes are at least this large" that holds for the maxima holds for all pre-codes.

    Args:
        v: Pre-codes, `(n, d_sae)`.
        least: Smallest number of groups that will do.

    Returns:
        Maxima, `(n, n_groups)`; None where groups of four would be too few.
    """
    n, d_sae = v.shape
    for size in _GROUPS:
        n_groups = d_sae // size
        if n_groups >= least:
            # members of a group lie n_groups apart: this way the maximum runs along contiguous memory
            return v[:, : size * n_groups].reshape(n, size, n_groups).amax(1)
    return None


def kth_largest(v: Tensor, k: int) -> Tensor:
    """The k-th largest of each row, `(n, 1)`, on the CPU."""
    if k == 1:
        return v.detach().amax(-1, keepdim=True)
    values, place = v.detach().numpy(), v.shape[1] - k
    ordered = np.sort(values, axis=1) if v.shape[1] <= _SORTED_ROW else np.partition(values, place, axis=1)
    return torch.from_numpy(ordered[:, place : place + 1])


def at_least_kth(v: Tensor, k: int) -> Tensor | None:
    """One where a pre-code is among the k largest of its row, zero elsewhere, `(n, d_sae)`.

    The quick way to dense codes where rows are short. None where it is not (other devices, long rows, rows in which
    more than k pre-codes reach the k-th largest): `largest_positions` decides there.
    """
    if v.device.type != "cpu" or v.shape[1] > _SHORT_ROW:
        return None
    mask = torch.ge(v, kth_largest(v, k), out=torch.empty_like(v))
    return mask if bool((mask.sum(-1) == k).all()) else None


def largest_positions(v: Tensor, k: int) -> Tensor:
    """Positions of the k largest pre-codes of each row, without those that are not positive.

    Among equal pre-codes any may be taken.

    Args:
        v: Pre-codes, `(n, d_sae)`.
        k: How many, from 1 to `d_sae`.

    Returns:
        `row * d_sae + column` of each, rising, int64 `(nnz,)`.
    """
    n, d_sae = v.shape
    if v.device.type != "cpu":
        latents = v.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
        positions = (latents + torch.arange(n, device=v.device)[:, None] * d_sae).flatten()
        return positions[~(v.flatten().index_select(0, positions) <= 0)]
    maxima = group_maxima(v, _ROOM * k)
    bound = kth_largest(v if maxima is None else maxima, k)  # at least k pre-codes reach it
    rows = v.detach().numpy()
    mask = np.less(rows, bound.numpy())
    candidates = np.flatnonzero(np.logical_not(mask, out=mask))
    values = rows.ravel()[candidates]
    keep = ~(values <= 0)
    if len(candidates) > n * k:
        keep &= _among_largest(values, candidates, v.shape, k)
    return torch.from_numpy(candidates if keep.all() else candidates[keep])


def _among_largest(values: NDArray[Any], candidates: NDArray[np.int64], shape: torch.Size, k: int) -> NDArray[np.bool_]:
    """Which candidates are among the k largest of their row, exactly k in each row, `(nnz,)`."""
    n, d_sae = shape
    samples = candidates // d_sae
    offsets = np.searchsorted(candidates, np.arange(n + 1) * d_sae)
    width = int(np.diff(offsets).max())
    table = np.full((n, width), -np.inf, dtype=values.dtype)  # the candidates of each row side by side
    place = samples * width + (np.arange(len(values)) - offsets[samples])
    table.ravel()[place] = values
    bound = np.partition(table, width - k, axis=1)[:, width - k]
    keep: NDArray[np.bool_] = ~(values < bound[samples])
    if keep.sum() > n * k:  # equal pre-codes (or NaN) at the bound
        chosen = np.zeros(table.shape, dtype=bool)
        np.put_along_axis(chosen, np.argpartition(table, width - k, axis=1)[:, width - k :], True, axis=1)
        keep = chosen.ravel()[place]
    return keep


def simplex_threshold(v: Tensor) -> Tensor:
    r"""The threshold of the projection onto the simplex: $\tau$ with $\sum_i \max(v_i - \tau, 0) = 1$.

    Newton's iteration from below, which needs no sort: the sum is convex, decreasing and piecewise linear in the
    threshold, so that the steps rise to its root, the support only shrinks, and the end is exact. (Short rows are
    sorted on the CPU, where numpy does that in less time than two of the steps take.)

    Args:
        v: Pre-codes `(n, d_sae)` whose largest of each row is 0 (else rounding may be large).

    Returns:
        Thresholds, `(n, 1)`, from -1 to 0.

    Source: Condat (2016), Fast projection onto the simplex and the l1 ball.
    """
    maxima = group_maxima(v, LEAST_GROUPS)
    if maxima is None and v.device.type == "cpu":
        found = _threshold_among_largest(v)
        if found is not None:
            return found
    # max - 1 lies below the root, and so does the threshold of any part of a row, the whole included
    tau = ((v.sum(-1, keepdim=True) - 1) / v.shape[-1]).clamp_min_(-1.0)
    if maxima is not None:
        tau = torch.maximum(tau, simplex_threshold(maxima))
    over, support = torch.empty_like(v), torch.empty_like(v)
    least = None  # the smallest support of each row so far
    while True:
        torch.sub(v, tau, out=over).clamp_min_(0)
        count = torch.gt(over, 0.0, out=support).sum(-1, keepdim=True)
        # a pre-code within rounding of tau may come back: only a support that shrank asks for another step
        if least is not None and not bool((count < least).any()):
            return tau
        least = count if least is None else torch.minimum(count, least)
        tau = tau + (over.sum(-1, keepdim=True) - 1) / count


def _threshold_among_largest(v: Tensor) -> Tensor | None:
    """The simplex's threshold by the largest pre-codes of each row, `(n, 1)`; None where a support may hold more.

    Source: Held, Wolfe and Crowder (1974).
    """
    largest_ = torch.from_numpy(np.sort(v.detach().numpy(), axis=1)[:, : -_FEW - 1 : -1].copy())
    sums = largest_.cumsum(1)
    ranks = torch.arange(1, largest_.shape[1] + 1, dtype=v.dtype)
    count = (1 + ranks * largest_ > sums).sum(1, keepdim=True)
    if v.shape[1] > _FEW and bool((count == _FEW).any()):
        return None
    # a row with NaN begins with it: its count is 0, and its threshold NaN, too
    count.clamp_min_(1)
    return (sums.gather(1, count - 1) - 1) / count
