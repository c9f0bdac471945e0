"""Concept F1: single latents as detectors of concepts."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the usual name)

from sae_lightning.metrics.functional._firing_counts import firing_counts, firing_scores
from sae_lightning.metrics.functional._inputs import check_matrix, check_size


class ConceptF1Result(NamedTuple):
    """Scores of latents as detectors of concepts. Concepts without samples have NaN, and means leave them out.

    Attributes:
        overall: Scalar, mean of `top_n_mean` over concepts.
        top_n_mean: ``(n_concepts,)``, mean F1 of the `top_n` best latents.
        top_n_std: ``(n_concepts,)``, population standard deviation of their F1.
        best: ``(n_concepts,)``, F1 of the best latent.
        best_latent: ``(n_concepts,)`` int64, index of the best latent, the lowest on a tie; -1 if all F1 are 0 or NaN.
        precision: ``(n_concepts, d_sae)``.
        recall: ``(n_concepts, d_sae)``.
        f1: ``(n_concepts, d_sae)``.
        purity: Scalar, mean over the latents that fire of each latent's largest precision, which is the share of its
            firings that fall in its main concept. NaN if none fires.
    """

    overall: Tensor
    top_n_mean: Tensor
    top_n_std: Tensor
    best: Tensor
    best_latent: Tensor
    precision: Tensor
    recall: Tensor
    f1: Tensor
    purity: Tensor


def concept_f1(codes: Tensor, concepts: Tensor, n_concepts: int, top_n: int = 5) -> ConceptF1Result:
    r"""Compute the F1 score of each latent as a detector of each concept, and of the best latents for each concept.

    .. math:: P = \frac{TP}{\mathrm{fired} + \epsilon}, \quad R = \frac{TP}{\mathrm{members} + \epsilon}, \quad
        F_1 = \frac{2 P R}{P + R + \epsilon}, \quad \epsilon = 10^{-12}

    A latent detects a concept in the samples where it fires (|code| > 1e-6). Unlabeled samples are not counted, since
    their concept is unknown. With a bool matrix of concepts every sample is counted, also where it has no concept.

    Args:
        codes: ``(batch, d_sae)``.
        concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.
        n_concepts: Number of concepts.
        top_n: Number of best latents of a concept to average.

    Returns:
        Scores of each latent for each concept, and their summary per concept.

    Raises:
        ValueError: if a tensor has the wrong shape or dtype, a label is out of range, or ``top_n`` is not
            in 1..d_sae.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics.functional import concept_f1
        >>> codes = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> result = concept_f1(codes, torch.tensor([0, 0, 1, 1]), n_concepts=2, top_n=1)
        >>> result.best, result.best_latent
        (tensor([1.0000, 0.8000], dtype=torch.float64), tensor([0, 1]))
    """
    codes = check_matrix("codes", codes)
    top_n = _check_top_n(top_n, codes.shape[1])
    return _concept_f1_compute(*firing_counts(codes, concepts, n_concepts), top_n=top_n)


def _check_top_n(top_n: int, d_sae: int) -> int:
    """Return ``top_n`` if it lies in 1..d_sae."""
    if check_size("top_n", top_n, minimum=1) > d_sae:
        raise ValueError(f"`top_n` must be at most d_sae={d_sae}, got {top_n}.")
    return top_n


def _concept_f1_compute(true_positives: Tensor, fired: Tensor, members: Tensor, top_n: int) -> ConceptF1Result:
    """Score each latent and summarize the best ones."""
    precision, recall, f1 = firing_scores(true_positives, fired, members)
    top = f1.topk(top_n, dim=1).values
    top_mean = top.mean(dim=1)
    best, best_latent = f1.max(dim=1)
    main = F.pad(precision.nan_to_num(0.0), (0, 0, 1, 0)).amax(dim=0)  # zeros, for n_concepts = 0
    return ConceptF1Result(
        overall=top_mean.nanmean(),
        top_n_mean=top_mean,
        top_n_std=(top - top_mean[:, None]).square().mean(dim=1).sqrt(),
        best=best,
        best_latent=torch.where(best > 0, best_latent, -1),
        precision=precision,
        recall=recall,
        f1=f1,
        purity=main[main > 0].mean(),
    )
