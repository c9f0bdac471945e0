"""Latent similarity: cosine between latents' codes over samples."""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.metrics.functional._inputs import check_matrix
from sae_lightning.metrics.functional._membership import membership
from sae_lightning.metrics.functional._stable_rank import stable_rank
from sae_lightning.nn.firing import fires


class LatentSimilarityResult(NamedTuple):
    """Cosine between latents, and its mean within and across preferred concepts.

    Attributes:
        cosine: ``(d_sae, d_sae)``, cosine between latents; 0 in the rows and columns of dead latents.
        alive: ``(d_sae,)`` bool, the latents that fire at least once.
        stable_rank: Scalar, trace of the matrix divided by its spectral norm. NaN if no latent is alive.
        concept: ``(d_sae,)`` int64, the preferred concept, where the latent's mean |code| is highest; -1 for a dead
            latent, or one that is active on unlabeled samples only.
        cross_concept: Scalar, mean |cosine| over pairs of latents with different preferred concepts, also called
            co-occurrence across concepts. NaN without such pairs.
        within_concept: Scalar, mean |cosine| over pairs of different latents with the same preferred concept. NaN
            without such pairs.
    """

    cosine: Tensor
    alive: Tensor
    stable_rank: Tensor
    concept: Tensor
    cross_concept: Tensor
    within_concept: Tensor


class _LatentMoments(NamedTuple):
    """Additive sums over samples."""

    gram: Tensor  # [d_sae, d_sae] float64
    fired: Tensor  # [d_sae] int64
    concept_sums: Tensor  # [n_concepts, d_sae] float64, of |code|
    members: Tensor  # [n_concepts] int64


def latent_similarity(codes: Tensor, concepts: Tensor, n_concepts: int) -> LatentSimilarityResult:
    r"""Compute the cosine between latents' codes over all samples, and its mean within and across preferred concepts.

    .. math:: L_{ij} = \frac{\sum_n z_{ni} z_{nj}}{\sqrt{\sum_n z_{ni}^2} \sqrt{\sum_n z_{nj}^2}}

    All samples enter the cosine; labels only determine each latent's preferred concept, where its mean |code| is
    highest.

    Args:
        codes: ``(batch, d_sae)``.
        concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.
        n_concepts: Number of concepts.

    Returns:
        The cosine matrix and its summary.

    Raises:
        ValueError: if a tensor has the wrong shape or dtype, or a label is out of range.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics.functional import latent_similarity
        >>> codes = torch.tensor([[3.0, 0.0, 0.0], [4.0, 5.0, 0.0]])
        >>> result = latent_similarity(codes, torch.tensor([0, 1]), n_concepts=2)
        >>> result.cosine
        tensor([[1.0000, 0.8000, 0.0000],
                [0.8000, 1.0000, 0.0000],
                [0.0000, 0.0000, 0.0000]], dtype=torch.float64)
        >>> result.concept
        tensor([ 1,  1, -1])
    """
    return _latent_similarity_compute(*_latent_similarity_update(codes, concepts, n_concepts))


def _latent_similarity_update(codes: Tensor, concepts: Tensor, n_concepts: int) -> _LatentMoments:
    """Sum the moments of one batch."""
    codes = check_matrix("codes", codes)
    members = membership(concepts, n_concepts, codes.shape[0]).double()
    wide = codes.double()
    return _LatentMoments(wide.T @ wide, fires(codes).sum(dim=0), members.T @ wide.abs(), members.sum(dim=0).long())


def _latent_similarity_compute(
    gram: Tensor, fired: Tensor, concept_sums: Tensor, members: Tensor
) -> LatentSimilarityResult:
    """Normalize the Gram matrix and average it over pairs of latents."""
    alive = fired > 0
    scale = torch.where(alive, gram.diagonal().rsqrt(), 0.0)
    cosine = gram * scale[:, None] * scale
    concept = _preferred_concept(concept_sums, members, alive)
    known = concept >= 0
    pairs = known[:, None] & known
    pairs.fill_diagonal_(False)
    same = concept[:, None] == concept
    strength = cosine.abs()
    return LatentSimilarityResult(
        cosine=cosine,
        alive=alive,
        stable_rank=stable_rank(cosine),
        concept=concept,
        cross_concept=strength[pairs & ~same].mean(),
        within_concept=strength[pairs & same].mean(),
    )


def _preferred_concept(concept_sums: Tensor, members: Tensor, alive: Tensor) -> Tensor:
    """Return the concept with the highest mean |code| for each latent, ``(d_sae,)`` int64, or -1."""
    if members.numel() == 0:
        return torch.full_like(alive, -1, dtype=torch.int64)
    mean_code, concept = (concept_sums / members.clamp(min=1)[:, None]).max(dim=0)
    return torch.where(alive & (mean_code > 0), concept, -1)
