"""Dimensions that the spectrum of a covariance gives: the participation ratio, and components for a share of energy."""

import torch
from torch import Tensor

from sae_lightning.geometry.estimate import Estimate

_ROWS = 4096  # samples whose projections are held at a time


def participation_ratio(x: Tensor, deviations: float) -> Estimate:
    r"""How many directions share the variance, without the bias of few samples.

    $$ D = \frac{(\mathrm{tr}\, \Sigma)^2}{\mathrm{tr}\, \Sigma^2} = \frac{(\sum_i \lambda_i)^2}{\sum_i \lambda_i^2} $$

    Put into this formula, the covariance S of n samples gives too little, about $D / (1 + D / n)$: chance correlations
    spread its spectrum. Both traces are therefore estimated without bias, for any distribution with fourth moments:
    with $q = \sum_i \|x_i - \bar x\|^4 / (n - 1)$,

    $$ \widehat{\mathrm{tr}\, \Sigma^2} = c\, ((n - 1)(n - 2)\, \mathrm{tr}\, S^2 + (\mathrm{tr}\, S)^2 - n q), $$
    $$ \widehat{(\mathrm{tr}\, \Sigma)^2} = c\, (2\, \mathrm{tr}\, S^2 + (n^2 - 3n + 1)(\mathrm{tr}\, S)^2 - n q), $$
    $$ c = (n - 1) / (n (n - 2)(n - 3)). $$

    The interval is normal, with the variance of what each sample alone contributes, measured against the covariance
    of the others; that counts the part that is quadratic in the samples twice, so that it is rather too wide.

    Args:
        x: Centred samples, float `(n, d_in)`, at least four, not all of them 0.
        deviations: Half the width of the interval, in standard deviations.

    Source: Himeno and Yamada (2014), Estimations for some functions of covariance matrix in high dimension under
    non-normality, Journal of Multivariate Analysis 130.
    """
    n = len(x)
    covariance = x.T @ x / (n - 1)
    norms = x.square().sum(1, dtype=torch.float64)
    energies = torch.cat([((rows @ covariance) * rows).sum(1) for rows in torch.split(x, _ROWS)]).double()
    square = covariance.double().square().sum()  # tr S^2
    trace = norms.sum() / (n - 1)
    fourth = norms.square().sum() / (n - 1)
    c = (n - 1) / (n * (n - 2) * (n - 3))
    of_square = c * ((n - 1) * (n - 2) * square + trace**2 - n * fourth)
    of_trace = c * (2 * square + (n * n - 3 * n + 1) * trace**2 - n * fourth)
    value = of_trace / of_square
    others = energies - norms.square() / (n - 1)  # x_i' S x_i without what x_i itself gave to S
    influence = 2 * value * ((norms / norms.mean() - 1) - (others - others.mean()) / of_square)
    width = deviations * (influence.var() / n).sqrt()
    return Estimate(float(value), max(1.0, float(value - width)), float(value + width))


def energy_components(x: Tensor, shares: tuple[float, ...], deviations: float) -> list[Estimate | None]:
    """How many principal components hold a share of the variance of samples that they were not fitted to.

    Components of one half of the samples are measured on the other, and the other way round: on its own samples a
    component holds too much, and dimensions come out too small. The interval consists of all numbers of components
    whose share of the energy may be the wanted one, given its standard error.

    Args:
        x: Centred samples in random order, float `(n, d_in)`, at least four, not all of them 0.
        shares: Wanted shares of the energy, between 0 and 1.
        deviations: Half the width of the interval, in standard deviations.

    Returns:
        An estimate per share; None where no number of components that n / 2 samples span reaches it.
    """
    n = len(x)
    halves = x[: n // 2], x[n // 2 :]
    d_in = x.shape[1]
    first, second, mixed = (torch.zeros(d_in, dtype=torch.float64) for _ in range(3))
    energy = energy_square = 0.0
    for fitted, measured in (halves, halves[::-1]):
        centred = (fitted - fitted.mean(0)).double()
        directions = torch.linalg.eigh(centred.T @ centred)[1].flip(1).to(x.dtype)
        for rows in torch.split(measured - measured.mean(0), _ROWS):
            held = (rows @ directions).square_().cumsum(1).double()
            whole = held[:, -1]
            first += held.sum(0)
            second += held.square().sum(0)
            mixed += whole @ held
            energy += float(whole.sum())
            energy_square += float(whole.square().sum())
    share = first / energy
    # variance of what is held less its share of the whole, sample by sample: the standard error of a ratio of means
    variance = (second - 2 * share * mixed + share.square() * energy_square).clamp(min=0)
    width = deviations * variance.sqrt() / energy
    limit = min(len(halves[0]), d_in)
    found: list[Estimate | None] = []
    for wanted in shares:
        counts = [int((bound < wanted - 1e-9).sum()) + 1 for bound in (share, share + width, share - width)]
        known = counts[0] < limit or (counts[0] == limit == d_in)
        found.append(Estimate(*(float(min(count, d_in)) for count in counts)) if known else None)
    return found
