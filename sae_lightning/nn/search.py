"""Search for the k largest pre-codes and for the simplex threshold, without sorting all pre-codes.

On the CPU the searches run in numpy, which is several times faster than torch at comparisons, partitions and index
searches. NaN always counts as found, so that the NaN of a diverged encoder reaches the loss.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_GROUPS = (32, 16, 8, 4)  # possible sizes of a group
_SHORT_ROW = 1024
_SORTED_ROW = 512  # longest row that numpy sorts faster than it partitions it (measured with AVX-512)
_FEW = 32  # number of largest pre-codes among which the support of a short row is searched first
LEAST_GROUPS = 64  # with fewer groups, maxima give too loose a bound on a row's threshold
_ROOM = 2  # least number of groups per code to keep: with fewer, the maxima give too loose a bound


def group_maxima(v: Tensor, least: int) -> Tensor | None:
    """Return the maxima of groups of pre-codes, with as few groups as possible, but at least `least`.

    If m maxima are at least t, so are at least m pre-codes: the maxima give a lower bound for the search in all.

    Args:
        v: Pre-codes, `(n, d_sae)`.
        least: Least number of groups.

    Returns:
        Maxima, `(n, n_groups)`; None if even groups of four are fewer than `least`.

    Example:
        >>> import torch
        >>> from sae_lightning.nn.search import group_maxima
        >>> group_maxima(torch.arange(8.0)[None], least=2)  # groups 0, 2, 4, 6 and 1, 3, 5, 7
        tensor([[6., 7.]])
    """
    n, d_sae = v.shape
    for size in _GROUPS:
        n_groups = d_sae // size
        if n_groups >= least:
            # members of a group are n_groups apart, so that the reduction reads contiguous memory
            return v[:, : size * n_groups].reshape(n, size, n_groups).amax(1)
    return None


def kth_largest(v: Tensor, k: int) -> Tensor:
    """Return the k-th largest value of each row, `(n, 1)`, on the CPU."""
    if k == 1:
        return v.detach().amax(-1, keepdim=True)
    values, place = v.detach().numpy(), v.shape[1] - k
    ordered = np.sort(values, axis=1) if v.shape[1] <= _SORTED_ROW else np.partition(values, place, axis=1)
    return torch.from_numpy(ordered[:, place : place + 1])


def at_least_kth(v: Tensor, k: int) -> Tensor | None:
    """Return 1 where a pre-code is among the k largest of its row, 0 elsewhere, `(n, d_sae)`.

    This is the fastest way to dense codes for short rows on the CPU. None otherwise, and if more than k pre-codes of a
    row are at least its k-th largest: use `largest_positions` then.
    """
    if v.device.type != "cpu" or v.shape[1] > _SHORT_ROW:
        return None
    mask = torch.ge(v, kth_largest(v, k), out=torch.empty_like(v))
    return mask if bool((mask.sum(-1) == k).all()) else None


def largest_positions(v: Tensor, k: int) -> Tensor:
    """Return the positions of the k largest pre-codes of each row that are positive.

    Ties are broken arbitrarily.

    Args:
        v: Pre-codes, `(n, d_sae)`.
        k: Number of pre-codes per row, from 1 to `d_sae`.

    Returns:
        Positions `row * d_sae + column` in ascending order, int64 `(nnz,)`.

    Example:
        >>> import torch
        >>> from sae_lightning.nn.search import largest_positions
        >>> largest_positions(torch.tensor([[5.0, 1.0, 3.0], [-1.0, -2.0, 4.0]]), k=2)
        tensor([0, 2, 5])
    """
    n, d_sae = v.shape
    if v.device.type != "cpu":
        latents = v.topk(k, dim=-1, sorted=False).indices.sort(dim=-1).values
        positions = (latents + torch.arange(n, device=v.device)[:, None] * d_sae).flatten()
        return positions[~(v.flatten().index_select(0, positions) <= 0)]
    maxima = group_maxima(v, _ROOM * k)
    bound = kth_largest(v if maxima is None else maxima, k)  # at least k pre-codes are this large
    rows = v.detach().numpy()
    mask = np.less(rows, bound.numpy())
    candidates = np.flatnonzero(np.logical_not(mask, out=mask))
    values = rows.ravel()[candidates]
    keep = ~(values <= 0)
    if len(candidates) > n * k:
        keep &= _among_largest(values, candidates, v.shape, k)
    return torch.from_numpy(candidates if keep.all() else candidates[keep])


def _among_largest(values: NDArray[Any], candidates: NDArray[np.int64], shape: torch.Size, k: int) -> NDArray[np.bool_]:
    """Return which candidates are among the k largest of their row, exactly k per row, bool `(nnz,)`."""
    n, d_sae = shape
    samples = candidates // d_sae
    offsets = np.searchsorted(candidates, np.arange(n + 1) * d_sae)
    width = int(np.diff(offsets).max())
    table = np.full((n, width), -np.inf, dtype=values.dtype)  # one row of candidates per sample
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
    r"""Return the threshold of the projection onto the simplex: $\tau$ with $\sum_i \max(v_i - \tau, 0) = 1$.

    Newton's iteration starts below the root. The sum is convex, decreasing and piecewise linear in $\tau$, so the
    iterates increase, the support only shrinks, and the iteration ends at the exact root. Short rows on the CPU are
    sorted instead, which takes less time than two Newton steps.

    Args:
        v: Pre-codes `(n, d_sae)`, shifted such that the largest of each row is 0, which keeps rounding errors small.

    Returns:
        Thresholds, `(n, 1)`, from -1 to 0.

    References:
        Condat (2016), Fast projection onto the simplex and the l1 ball.

    Example:
        >>> import torch
        >>> from sae_lightning.nn.search import simplex_threshold
        >>> simplex_threshold(torch.tensor([[0.0, -0.5, -2.0]]))  # 0.75 + 0.25 = 1
        tensor([[-0.7500]])
    """
    maxima = group_maxima(v, LEAST_GROUPS)
    if maxima is None and v.device.type == "cpu":
        found = _threshold_among_largest(v)
        if found is not None:
            return found
    # lower bounds of the root: max - 1 = -1, Newton's step for the full support, and the root for a subset (the maxima)
    tau = ((v.sum(-1, keepdim=True) - 1) / v.shape[-1]).clamp_min_(-1.0)
    if maxima is not None:
        tau = torch.maximum(tau, simplex_threshold(maxima))
    over, support = torch.empty_like(v), torch.empty_like(v)
    least = None  # the smallest support of each row so far
    while True:
        torch.sub(v, tau, out=over).clamp_min_(0)
        count = torch.gt(over, 0.0, out=support).sum(-1, keepdim=True)
        # stop unless a support shrank: within rounding of tau, a pre-code may enter the support again
        if least is not None and not bool((count < least).any()):
            return tau
        least = count if least is None else torch.minimum(count, least)
        tau = tau + (over.sum(-1, keepdim=True) - 1) / count


def _threshold_among_largest(v: Tensor) -> Tensor | None:
    """Return the simplex threshold from the largest pre-codes of each row, `(n, 1)`; None if a support may hold more.

    References:
        Held, Wolfe and Crowder (1974), Validation of subgradient optimization.
    """
    largest_ = torch.from_numpy(np.sort(v.detach().numpy(), axis=1)[:, : -_FEW - 1 : -1].copy())
    sums = largest_.cumsum(1)
    ranks = torch.arange(1, largest_.shape[1] + 1, dtype=v.dtype)
    count = (1 + ranks * largest_ > sums).sum(1, keepdim=True)
    if v.shape[1] > _FEW and bool((count == _FEW).any()):
        return None
    # NaN is sorted to the front, so its row has count 0; its threshold is NaN as well
    count.clamp_min_(1)
    return (sums.gather(1, count - 1) - 1) / count
