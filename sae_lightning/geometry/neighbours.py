"""The two-nearest-neighbour estimate of intrinsic dimension."""

import torch
from torch import Tensor

from sae_lightning.geometry.estimate import Estimate

_VALUES = 2**24  # distances that are held at a time


def neighbour_ratios(x: Tensor, queries: Tensor) -> Tensor:
    """Distance to the second nearest other sample over that to the nearest, for some of the samples.

    Candidates are found by the product of all pairs, a chunk at a time, and their distances computed anew, since
    differences of large squares would round small distances away.

    Args:
        x: Samples, float `(n, d_in)`, at least three.
        queries: Positions of the samples that are asked about, int64 `(n_queries,)`.

    Returns:
        Ratios, float64 `(n_queries,)`, at least 1; infinite where the nearest other sample is an equal one.
    """
    norms = x.square().sum(1)
    found = []
    for rows in torch.split(queries, max(1, _VALUES // len(x))):
        squares = torch.addmm(norms, x[rows], x.T, alpha=-2)  # less the query's own square, the same for all
        squares[torch.arange(len(rows)), rows] = torch.inf
        nearest = squares.topk(2, largest=False).indices
        exact = (x[nearest] - x[rows, None]).double().norm(dim=2).sort(1).values
        found.append(torch.where(exact[:, 0] > 0, exact[:, 1] / exact[:, 0], torch.inf))
    return torch.cat(found)


def two_nn(ratios: Tensor, deviations: float, discard: float = 0.1) -> Estimate:
    r"""Intrinsic dimension from the ratios $\mu$ of the distances to the two nearest neighbours.

    Where density hardly changes between these, $\log \mu$ is exponential with rate D. The largest ratios depart from
    that first, so the largest `discard` of them count only as larger than the largest that is kept:

    $$ D = \frac{m - 1}{\sum_{i \le m} \log \mu_{(i)} + (N - m) \log \mu_{(m)}}, \qquad m = (1 - discard) N, $$

    the unbiased estimate from the m smallest of N, with the interval $D (1 \pm z / \sqrt m)$. (The authors fit a line
    to the same distribution, with the same tenth left out.)

    It needs no flat subspace and no spectrum, but it underestimates high dimensions, the more the fewer samples there
    are: neighbours of n samples are close only in up to about $2 \log_{10} n$ dimensions (Eckmann and Ruelle, 1992).
    Above that it is a lower bound. Noise along further directions, however little, raises it where samples are dense.

    Args:
        ratios: Ratios, float64 `(N,)`, finite, at least two that are not discarded.
        deviations: Half the width of the interval, in standard deviations.
        discard: Share of the largest ratios, from 0 to below 1.

    Source: Facco, d'Errico, Rodriguez and Laio (2017), arXiv 1803.06992.
    """
    logs = ratios.log().sort().values
    kept = int(len(logs) * (1 - discard))
    value = (kept - 1) / float(logs[:kept].sum() + (len(logs) - kept) * logs[kept - 1])
    width = deviations / kept**0.5
    return Estimate(value, value * max(0.0, 1 - width), value * (1 + width))
