"""F1 of thresholded scores: the exact best threshold, a smooth surrogate, and a bootstrap interval."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable


def best_threshold(scores: Tensor, members: Tensor, lowest: float = -torch.inf) -> tuple[Tensor, Tensor]:
    r"""Return the threshold t for which "score > t" has the highest F1, found exactly by sorting.

    $$ F_1 = \frac{2 TP}{\mathrm{fired} + \mathrm{members}} $$

    The threshold is halfway between two scores. Of equally good thresholds, the highest is returned.

    Args:
        scores: Scores, `(..., n)`.
        members: Which samples are members, bool `(..., n)`, broadcast against the scores.
        lowest: Lower limit of thresholds.

    Returns:
        Thresholds in the dtype of the scores, and F1 in float64, both `(...)`. F1 is 0 if no score exceeds `lowest`.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry.f1 import best_threshold
        >>> best_threshold(torch.tensor([1.0, 4.0, 6.0, 9.0]), torch.tensor([False, False, True, True]))
        (tensor(5.), tensor(1., dtype=torch.float64))
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
    threshold = torch.where(middle < upper, middle, lower)  # the midpoint may be rounded up to the upper score
    threshold = torch.where(best < 0, ordered[..., :1], threshold).clamp(min=lowest)
    return threshold[..., 0], best[..., 0].clamp(min=0)


class _SmoothF1(Function):
    """Formula of `smooth_f1` in few passes over the scores, since passes take much of the time of a search."""

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
        scores: Scores, `(n_starts, n_concepts, n)`.
        thresholds: Thresholds $t$, `(n_starts, n_concepts)`.
        members: 1 for members and 0 for others, in the dtype of the scores, `(n_concepts, n)`.
        temperatures: Widths $\tau$ of the step, `(n_starts, n_concepts)`.

    Returns:
        Smooth F1, `(n_starts, n_concepts)`.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry.f1 import smooth_f1
        >>> scores, members, one = torch.tensor([[[-9.0, 9.0]]]), torch.tensor([[0.0, 1.0]]), torch.ones(1, 1)
        >>> round(smooth_f1(scores, 0 * one, members, one).item(), 3)
        1.0
    """
    f1: Tensor = _SmoothF1.apply(scores, thresholds, members, temperatures)  # type: ignore[no-untyped-call]
    return f1


def outcomes(fires: Tensor, members: Tensor) -> Tensor:
    """Count true positives, false positives and false negatives: float64 `(3, ...)` from bool `(..., n)`."""
    return torch.stack([(fires & members).sum(-1), (fires & ~members).sum(-1), (~fires & members).sum(-1)]).double()


def f1_of(counts: Tensor) -> Tensor:
    """Return F1 from the counts of `outcomes`; NaN if there are neither members nor positives.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry.f1 import f1_of
        >>> f1_of(torch.tensor([3.0, 1.0, 1.0]))  # true positives, false positives, false negatives
        tensor(0.7500)
    """
    twice: Tensor = 2 * counts[0]
    return twice / (twice + counts[1] + counts[2])


def bootstrap_interval(
    counts: Tensor, n: int, n_resamples: int, confidence: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the percentile interval of F1 for samples that are resampled with replacement.

    F1 depends on the numbers of outcomes only, so a resample is one draw from a multinomial distribution over outcomes,
    at a cost independent of the number of samples.

    Args:
        counts: Counts of `outcomes`, `(3, ...)`.
        n: Number of samples.
        n_resamples: Number of resamples.
        confidence: Coverage of the interval, between 0 and 1.
        generator: Source of randomness.

    Returns:
        Lower and upper ends, float64 `(...)`.

    References:
        Efron and Tibshirani (1993), An Introduction to the Bootstrap, chapter 13.
    """
    left, still_possible, drawn = torch.full((n_resamples, *counts.shape[1:]), float(n)).double(), 1.0, []
    for share in counts / n:  # multinomial as a sequence of binomials on the remaining samples
        probability = (share / still_possible).nan_to_num(0.0).clamp(0, 1)
        drawn.append(torch.binomial(left, probability.expand_as(left), generator=generator))
        left, still_possible = left - drawn[-1], still_possible - share
    f1 = f1_of(torch.stack(drawn))
    tail = (1 - confidence) / 2
    return f1.nanquantile(tail, dim=0), f1.nanquantile(1 - tail, dim=0)
