"""Two-nearest-neighbor estimate of intrinsic dimension."""

import torch
from torch import Tensor

from sae_lightning.geometry.estimate import Estimate

_VALUES = 2**24  # number of distances in memory at a time


def neighbor_ratios(x: Tensor, queries: Tensor) -> Tensor:
    """Return the distance to the second nearest other sample, divided by that to the nearest, for some samples.

    Neighbors are found by products of all pairs, in chunks. Their distances are then recomputed from differences, since
    differences of large squares would round small distances away.

    Args:
        x: Samples, float `(n, d_in)`, at least three.
        queries: Indices of the samples whose neighbors are searched, int64 `(n_queries,)`.

    Returns:
        Ratios, float64 `(n_queries,)`, at least 1; infinite if the nearest other sample is equal.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry.neighbors import neighbor_ratios
        >>> neighbor_ratios(torch.tensor([[0.0], [1.0], [3.0]]), torch.tensor([0]))  # distances 3 and 1
        tensor([3.], dtype=torch.float64)
    """
    norms = x.square().sum(1)
    found = []
    for rows in torch.split(queries, max(1, _VALUES // len(x))):
        squares = torch.addmm(norms, x[rows], x.T, alpha=-2)  # without the square of the query, a constant
        squares[torch.arange(len(rows)), rows] = torch.inf
        nearest = squares.topk(2, largest=False).indices
        exact = (x[nearest] - x[rows, None]).double().norm(dim=2).sort(1).values
        found.append(torch.where(exact[:, 0] > 0, exact[:, 1] / exact[:, 0], torch.inf))
    return torch.cat(found)


def two_nn(ratios: Tensor, deviations: float, discard: float = 0.1) -> Estimate:
    r"""Estimate the intrinsic dimension from the ratios $\mu$ of the distances to the two nearest neighbors.

    If density hardly changes between the neighbors, $\log \mu$ has an exponential distribution with rate D. The largest
    ratios deviate from it first, so the largest `discard` of them are censored at the largest ratio that is kept:

    $$ D = \frac{m - 1}{\sum_{i \le m} \log \mu_{(i)} + (N - m) \log \mu_{(m)}}, \qquad m = (1 - discard) N, $$

    the unbiased estimate from the m smallest of N, with the interval $D (1 \pm z / \sqrt m)$. (The authors fit a line
    to the same distribution, and also discard a tenth.)

    The estimate does not need a flat subspace, but underestimates high dimensions, more so with fewer samples: it is a
    lower bound above about $2 \log_{10} n$ dimensions for n samples (Eckmann and Ruelle, 1992). Even weak noise in
    other directions increases it if samples are dense.

    Args:
        ratios: Ratios, float64 `(N,)`, finite, at least two that are not discarded.
        deviations: Half the width of the interval, in standard deviations.
        discard: Fraction of the largest ratios to discard, from 0 to below 1.

    Returns:
        The estimate.

    References:
        Facco, d'Errico, Rodriguez and Laio (2017), arXiv 1803.06992.
        Eckmann and Ruelle (1992), Fundamental limitations for estimating dimensions.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry.neighbors import two_nn
        >>> x = torch.full((3,), 0.5, dtype=torch.float64).exp()  # each logarithm is 1 / 2
        >>> round(two_nn(x, deviations=2.0, discard=0.0).value, 4)  # (3 - 1) / (3 / 2)
        1.3333
    """
    logs = ratios.log().sort().values
    kept = int(len(logs) * (1 - discard))
    value = (kept - 1) / float(logs[:kept].sum() + (len(logs) - kept) * logs[kept - 1])
    width = deviations / kept**0.5
    return Estimate(value, value * max(0.0, 1 - width), value * (1 + width))
