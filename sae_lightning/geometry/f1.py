"""F1 of thresholded scores: the exact best threshold, a smooth surrogate, and an interval for it."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def best_threshold(scores: Tensor, members: Tensor, lowest: float = -torch.inf) -> tuple[Tensor, Tensor]:
    r"""Threshold t for which "score > t" has the highest F1, exactly, by sorting.

    $$ F_1 = \frac{2 TP}{\mathrm{fired} + \mathrm{members}} $$

    Between two scores the threshold lies halfway. Where several thresholds are equally good, the highest is taken.

    Args:
        scores: `(..., n)`.
        members: Which samples are members, bool `(..., n)`, broadcast against the scores.
        lowest: What a threshold must not lie below.

    Returns:
        Thresholds in the scores' precision, and F1 in float64, both `(...)`. F1 is 0 where no score exceeds `lowest`.
    """
    n = scores.shape[-1]
    ordered, order = scores.sort(descending=True)
    true_positives = members.expand_as(scores).gather(-1, order).double().cumsum_(-1)
    n_members = true_positives[..., -1:].clone()
    fired = torch.arange(1, n + 1, dtype=torch.float64, device=scores.device)
    f1 = true_positives.mul_(2).div_(fired + n_members)
    f1[..., :-1].masked_fill_(ordered[..., :-1] == ordered[..., 1:], -1)  # equal scores fire together
    f1.masked_fill_(ordered <= lowest, -1)
    best, at = f1.max(dim=-1, keepdim=True)
    upper, least = ordered.gather(-1, at), ordered[..., -1:]
    lower = ordered.gather(-1, (at + 1).clamp(max=n - 1))
    lower = torch.where(at == n - 1, upper - (ordered[..., :1] - least).clamp(min=1), lower)
    middle = lower + (upper - lower) / 2
    threshold = torch.where(middle < upper, middle, lower)  # halfway may be rounded up
    threshold = torch.where(best < 0, ordered[..., :1], threshold).clamp(min=lowest)
    return threshold[..., 0], best[..., 0].clamp(min=0)


class _SmoothF1(Function):
    """The formula of `smooth_f1`, in few passes: they are what a climb costs beside its products."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, thresholds: Tensor, members: Tensor, temperatures: Tensor) -> Tensor:
        fires = (scores - thresholds[..., None]).div_(temperatures[..., None]).sigmoid_()
        among = torch.einsum("scn,cn->sc", fires, members)
        total = fires.sum(-1) + members.sum(-1)
        ctx.save_for_backward(fires, members, temperatures, among, total)
        return 2 * among / total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        fires, members, temperatures, among, total = ctx.saved_tensors
        factor = 2 * gradient / (total * temperatures)
        of_scores = members * factor[..., None]
        of_scores -= (factor * among / total)[..., None]
        of_scores.mul_(fires).mul_(1 - fires)
        return of_scores, -of_scores.sum(-1), None, None


def smooth_f1(scores: Tensor, thresholds: Tensor, members: Tensor, temperatures: Tensor) -> Tensor:
    r"""F1 of a smooth step, $\sigma(x) = \mathrm{sigmoid}((s(x) - t) / \tau)$, differentiable in scores and thresholds.

    $$ \frac{2 \sum_{x \in c} \sigma(x)}{\sum_x \sigma(x) + |c|} $$

    Args:
        scores: `(n_starts, n_concepts, n)`.
        thresholds: `(n_starts, n_concepts)`.
        members: Which samples are members, as numbers of the scores' precision, `(n_concepts, n)`.
        temperatures: Widths of the step, `(n_starts, n_concepts)`.

    Returns:
        `(n_starts, n_concepts)`.
    """
    f1: Tensor = _SmoothF1.apply(scores, thresholds, members, temperatures)  # type: ignore[no-untyped-call]
    return f1


def outcomes(fires: Tensor, members: Tensor) -> Tensor:
    """Count true positives, false positives and false negatives: float64 `(3, ...)` from bool `(..., n)`."""
    return torch.stack([(fires & members).sum(-1), (fires & ~members).sum(-1), (~fires & members).sum(-1)]).double()


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
