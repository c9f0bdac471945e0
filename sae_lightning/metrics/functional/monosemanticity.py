"""Monosemanticity: degree to which a latent fires in one concept only."""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.metrics.functional._firing_counts import firing_counts, firing_scores
from sae_lightning.metrics.functional._inputs import check_matrix
from sae_lightning.metrics.functional._membership import check_concepts, labeled


class MonosemanticityResult(NamedTuple):
    """Monosemanticity of each latent, and its mean.

    Attributes:
        mean: Scalar, mean of `per_latent` over latents that fire in a concept. NaN if none does.
        std: Scalar, population standard deviation over the same latents.
        per_latent: ``(d_sae,)``, from 1/n_concepts to 1 for a latent of one concept. NaN for a latent that fires in no
            concept.
        concept: ``(d_sae,)`` int64, the concept with the largest F1; -1 for a latent that fires in no concept.
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
    r"""Compute each latent's largest F1 score divided by the sum of its F1 scores over concepts.

    .. math:: m_i = \max_c \frac{F_{ci}}{\sum_{c'} F_{c'i}}

    It is 1 if latent i fires in one concept only, however small its recall: a latent that fires on a single sample
    has 1.

    By default a latent fires where |code| > 1e-6. These counts are additive over batches, and
    :class:`sae_lightning.metrics.Monosemanticity` uses the same definition. ``normalize=True`` follows the authors'
    code: each latent's codes are divided by their L2 norm over the labeled samples, true positives are counted above
    ``concept_threshold`` and firings above ``firing_threshold``. This needs the codes of all samples at once.

    Args:
        codes: ``(batch, d_sae)``; all samples of the evaluation set if ``normalize``.
        concepts: ``(batch,)`` int64 with -1 for unlabeled samples (left out), or ``(batch, n_concepts)`` bool.
        n_concepts: Number of concepts.
        normalize: Use the definition of the authors' code.
        concept_threshold: Threshold of the normalized code for true positives; only with ``normalize``.
        firing_threshold: Threshold of the normalized code for firings; only with ``normalize``.

    Returns:
        Mean and standard deviation over latents, and each latent's value and concept.

    Raises:
        ValueError: if a tensor has the wrong shape or dtype, or a label is out of range.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics.functional import monosemanticity
        >>> codes = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
        >>> monosemanticity(codes, torch.tensor([0, 0, 1, 1]), n_concepts=2).per_latent
        tensor([1.0000, 0.6667,    nan], dtype=torch.float64)
    """
    codes = check_matrix("codes", codes)
    if not normalize:
        return _monosemanticity_compute(*firing_counts(codes, concepts, n_concepts))
    check_concepts(concepts, n_concepts, codes.shape[0])  # before labels are used as a mask
    codes = torch.where(labeled(concepts)[:, None], codes.double(), 0.0)
    norms = torch.linalg.vector_norm(codes, dim=0)
    codes = codes / norms.clamp(min=torch.finfo(codes.dtype).tiny)
    counts = firing_counts(codes, concepts, n_concepts, within=concept_threshold, at_all=firing_threshold)
    return _monosemanticity_compute(*counts)


def _monosemanticity_compute(true_positives: Tensor, fired: Tensor, members: Tensor) -> MonosemanticityResult:
    """Divide each latent's largest F1 by the sum of its F1 scores."""
    f1 = firing_scores(true_positives, fired, members)[2].nan_to_num(nan=0.0)
    f1 = torch.cat([f1, f1.new_zeros(1, f1.shape[1])])  # so that `max` works with n_concepts = 0
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
