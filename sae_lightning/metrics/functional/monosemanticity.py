"""Monosemanticity: whether a latent fires for one concept only."""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.metrics.functional._firing_counts import firing_counts, firing_scores
from sae_lightning.metrics.functional._inputs import check_matrix
from sae_lightning.metrics.functional._membership import check_concepts, labelled


class MonosemanticityResult(NamedTuple):
    """How concentrated the latents are on single concepts.

    Attributes:
        mean: Scalar, mean of `per_latent` over live latents. NaN if none is alive.
        std: Scalar, their population standard deviation (divided by n, as NumPy does).
        per_latent: ``(d_sae,)`` in 1/n_concepts..1, 1 for a latent of one concept. NaN for a latent that never
            fires in any concept.
        concept: ``(d_sae,)`` int64, the concept of that maximum, -1 for a latent that never fires in any concept.
    """

    mean: Tensor
    std: Tensor
    per_latent: Tensor
    concept: Tensor


def monosemanticity(
    codes: Tensor,
    concepts: Tensor,
    n_concepts: int,
    normalize: bool = False,
    *,
    concept_threshold: float = 1e-3,
    firing_threshold: float = 1e-5,
) -> MonosemanticityResult:
    r"""Largest share that one concept has in a latent's F1 scores.

    .. math:: m_i = \max_c \frac{F_{ci}}{\sum_{c'} F_{c'i}}

    1 means that latent i fires in one concept only. It says nothing about recall: a latent that fires on a single
    sample has 1.

    Two definitions of firing are offered. By default a latent fires where |code| > 1e-6, in a concept and at
    all: exact, additive over batches, and what the class of the same name computes. ``normalize=True`` is what the
    authors' code does: each latent's codes are first divided by their L2 norm over the (labelled) samples; it fires in
    a concept above ``concept_threshold`` and at all above ``firing_threshold``. That norm is known only once
    every sample has been seen, so the second definition exists in this function alone, which has all codes at once.

    Source: Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Args:
        codes: ``(batch, d_sae)``; all samples of the evaluation set if ``normalize``.
        concepts: ``(batch,)`` int64 with -1 for unlabelled (left out), or ``(batch, n_concepts)`` bool.
        n_concepts: Number of concepts.
        normalize: Use the authors' definition.
        concept_threshold: Normalised code above which a latent fires in a concept; only with ``normalize``.
        firing_threshold: Normalised code above which it fires at all; only with ``normalize``.

    Returns:
        Mean and standard deviation over live latents, and each latent's value and concept.

    Raises:
        ValueError: if a tensor has the wrong shape or dtype, or a label is out of range.

    Example:
        >>> import torch
        >>> codes = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
        >>> monosemanticity(codes, torch.tensor([0, 0, 1, 1]), n_concepts=2).per_latent
        tensor([1.0000, 0.6667,    nan], dtype=torch.float64)
    """
    codes = check_matrix("codes", codes)
    if not normalize:
        return _monosemanticity_compute(*firing_counts(codes, concepts, n_concepts))
    check_concepts(concepts, n_concepts, codes.shape[0])  # reports bad labels before they serve as a mask
    codes = torch.where(labelled(concepts)[:, None], codes.double(), 0.0)
    norms = torch.linalg.vector_norm(codes, dim=0)
    codes = codes / norms.clamp(min=torch.finfo(codes.dtype).tiny)
    counts = firing_counts(codes, concepts, n_concepts, within=concept_threshold, at_all=firing_threshold)
    return _monosemanticity_compute(*counts)


def _monosemanticity_compute(true_positives: Tensor, fired: Tensor, members: Tensor) -> MonosemanticityResult:
    """Turn each latent's F1 vector into shares and take the largest."""
    f1 = firing_scores(true_positives, fired, members)[2].nan_to_num(nan=0.0)
    f1 = torch.cat([f1, f1.new_zeros(1, f1.shape[1])])  # without concepts there is still a maximum, of zero
    total = f1.sum(dim=0)
    best, concept = f1.max(dim=0)
    per_latent = torch.where(total > 0, best / total, torch.nan)
    mean = per_latent.nanmean()
    return MonosemanticityResult(
        mean=mean,
        std=(per_latent - mean).square().nanmean().sqrt(),
        per_latent=per_latent,
        concept=torch.where(total > 0, concept, -1),
    )
