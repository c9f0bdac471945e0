"""Dimension from the spectrum of the covariance: participation ratio, and components for a share of the energy."""

import torch
from torch import Tensor

from sae_lightning.geometry.estimate import Estimate

_ROWS = 4096  # number of samples whose projections are in memory at a time


def participation_ratio(x: Tensor, deviations: float) -> Estimate:
    r"""Estimate the number of directions that share the variance, without bias for few samples.

    $$ D = \frac{(\mathrm{tr}\, \Sigma)^2}{\mathrm{tr}\, \Sigma^2} = \frac{(\sum_i \lambda_i)^2}{\sum_i \lambda_i^2} $$

    The sample covariance S of n samples would give only about $D / (1 + D / n)$, since chance correlations spread its
    spectrum. Both traces are therefore replaced by unbiased estimates, valid for any distribution with fourth moments.
    With $q = \sum_i \|x_i - \bar x\|^4 / (n - 1)$,

    $$ \widehat{\mathrm{tr}\, \Sigma^2} = c\, ((n - 1)(n - 2)\, \mathrm{tr}\, S^2 + (\mathrm{tr}\, S)^2 - n q), $$
    $$ \widehat{(\mathrm{tr}\, \Sigma)^2} = c\, (2\, \mathrm{tr}\, S^2 + (n^2 - 3n + 1)(\mathrm{tr}\, S)^2 - n q), $$
    $$ c = (n - 1) / (n (n - 2)(n - 3)). $$

    The interval is normal, with the variance of the samples' influence, each measured against the covariance of the
    other samples. It is conservative, since it counts terms quadratic in the samples twice.

    Args:
        x: Centered samples, float `(n, d_in)`, at least four, not all of them 0.
        deviations: Half the width of the interval, in standard deviations.

    Returns:
        The estimate.

    References:
        Himeno and Yamada (2014), Estimations for some functions of covariance matrix in high dimension under
        non-normality, Journal of Multivariate Analysis 130.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry.spectrum import participation_ratio
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> round(participation_ratio(x - x.mean(0), deviations=2.0).value)
        2
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
    others = energies - norms.square() / (n - 1)  # x_i' S x_i without the part of S that is due to x_i
    influence = 2 * value * ((norms / norms.mean() - 1) - (others - others.mean()) / of_square)
    width = deviations * (influence.var() / n).sqrt()
    return Estimate(float(value), max(1.0, float(value - width)), float(value + width))


def energy_components(x: Tensor, shares: tuple[float, ...], deviations: float) -> list[Estimate | None]:
    """Count the principal components that hold a share of the variance of held-out samples.

    Components fitted to one half of the samples are evaluated on the other half, and vice versa. (On the samples to
    which they were fitted they hold too much variance, so dimensions would be underestimated.) The interval contains
    all numbers of components with an energy compatible with the share, given its standard error.

    Args:
        x: Centered samples in random order, float `(n, d_in)`, at least four, not all of them 0.
        shares: Target shares of the energy, between 0 and 1.
        deviations: Half the width of the interval, in standard deviations.

    Returns:
        An estimate per share; None if the components that n / 2 samples span do not reach it.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry.spectrum import energy_components
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)) @ torch.eye(2, 5)
        >>> energy_components(x - x.mean(0), (0.99,), deviations=2.0)[0].value
        2.0
    """
    n = len(x)
    halves = x[: n // 2], x[n // 2 :]
    d_in = x.shape[1]
    first, second, mixed = (torch.zeros(d_in, dtype=torch.float64) for _ in range(3))
    energy = energy_square = 0.0
    for fitted, measured in (halves, halves[::-1]):
        centered = (fitted - fitted.mean(0)).double()
        directions = torch.linalg.eigh(centered.T @ centered)[1].flip(1).to(x.dtype)
        for rows in torch.split(measured - measured.mean(0), _ROWS):
            held = (rows @ directions).square_().cumsum(1).double()
            whole = held[:, -1]
            first += held.sum(0)
            second += held.square().sum(0)
            mixed += whole @ held
            energy += float(whole.sum())
            energy_square += float(whole.square().sum())
    share = first / energy
    # standard error of a ratio of means, from the variance of (held - share * whole) over samples
    variance = (second - 2 * share * mixed + share.square() * energy_square).clamp(min=0)
    width = deviations * variance.sqrt() / energy
    limit = min(len(halves[0]), d_in)
    found: list[Estimate | None] = []
    for wanted in shares:
        counts = [int((bound < wanted - 1e-9).sum()) + 1 for bound in (share, share + width, share - width)]
        known = counts[0] < limit or (counts[0] == limit == d_in)
        found.append(Estimate(*(float(min(count, d_in)) for count in counts)) if known else None)
    return found
