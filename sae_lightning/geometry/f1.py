"""F1 of thresholded scores: the exact best threshold, a smooth surrogate, and an interval for it."""

import torch
from torch import Tensor


def best_threshold(scores: Tensor, members: Tensor, lowest: float = -torch.inf) -> tuple[Tensor, Tensor]:
    r"""Threshold t for which "score > t" has the highest F1, exactly, by sorting.

    $$ F_1 = \frac{2 TP}{\mathrm{fired} + \mathrm{members}} $$

    Between two scores the threshold lies halfway. Where several thresholds are equally good, the highest is taken.

    Args:
        scores: `(n, ...)`.
        members: Which samples are members, bool `(n, ...)`, broadcast against the scores.
        lowest: What a threshold must not lie below.

    Returns:
        Thresholds in the scores' precision, and F1 in float64, both `(...)`. F1 is 0 where no score exceeds `lowest`.
    """
    ordered, order = scores.sort(dim=0, descending=True)
    true_positives = members.expand_as(scores).gather(0, order).double().cumsum_(0)
    n_members = true_positives[-1].clone()
    fired = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)
    f1 = true_positives.mul_(2).div_(fired.view(-1, *[1] * (scores.ndim - 1)) + n_members)
    f1[:-1].masked_fill_(ordered[:-1] == ordered[1:], -1)  # equal scores fire together
    f1.masked_fill_(ordered <= lowest, -1)
    best, at = f1.max(dim=0, keepdim=True)
    upper = ordered.gather(0, at)
    last = at == len(scores) - 1
    lower = ordered.gather(0, (at + 1).clamp(max=len(scores) - 1))
    lower = torch.where(last, upper - (ordered[:1] - ordered[-1:]).clamp(min=1), lower)
    middle = lower + (upper - lower) / 2
    threshold = torch.where(middle < upper, middle, lower).clamp(min=lowest)  # halfway may be rounded up
    threshold = torch.where(best < 0, ordered[:1].clamp(min=lowest), threshold)
    return threshold[0], best[0].clamp(min=0)


def outcomes(fires: Tensor, members: Tensor) -> Tensor:
    """Count true positives, false positives and false negatives: float64 `(3, ...)` from bool `(n, ...)`."""
    return torch.stack([(fires & members).sum(0), (fires & ~members).sum(0), (~fires & members).sum(0)]).double()


def f1_of(counts: Tensor) -> Tensor:
    """F1 from `outcomes`; NaN where there are neither members nor positives."""
    twice: Tensor = 2 * counts[0]
    return twice / (twice + counts[1] + counts[2])


def bootstrap_interval(
    counts: Tensor, n: int, n_resamples: int, confidence: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Percentile interval of F1 under resampling of the samples with replacement.

    A sample enters F1 by its outcome alone, so that a resample is one draw from a multinomial distribution over the
    outcomes, at a cost that does not depend on the number of samples.

    Args:
        counts: What `outcomes` gave, `(3, ...)`.
        n: Number of samples.
        n_resamples: Number of resamples.
        confidence: Share of the resamples within the interval, between 0 and 1.
        generator: Source of randomness.

    Returns:
        Lower and upper end, `(...)`, float64.

    Source: Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    left, still_possible, drawn = torch.full((n_resamples, *counts.shape[1:]), float(n)).double(), 1.0, []
    for share in counts / n:  # one outcome after the other, each among the samples that the earlier ones left
        probability = (share / still_possible).nan_to_num(0.0).clamp(0, 1)
        drawn.append(torch.binomial(left, probability.expand_as(left), generator=generator))
        left, still_possible = left - drawn[-1], still_possible - share
    f1 = f1_of(torch.stack(drawn))
    tail = (1 - confidence) / 2
    return f1.nanquantile(tail, dim=0), f1.nanquantile(1 - tail, dim=0)
