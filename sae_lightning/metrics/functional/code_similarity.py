"""Code similarity: cosine between the codes of samples, within and across concepts."""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.metrics.functional._inputs import check_matrix
from sae_lightning.metrics.functional._membership import membership
from sae_lightning.metrics.functional._stable_rank import stable_rank


class CodeSimilarityResult(NamedTuple):
    """Summary of the sample-by-sample cosine matrix of the codes.

    Attributes:
        stable_rank: Scalar, trace of that matrix divided by its spectral norm, an estimate of the number of groups of
            samples with similar codes. NaN without samples.
        concept_cosine: ``(n_concepts, n_concepts)``, mean cosine between the samples of two concepts, on the diagonal
            including that of each sample with itself. NaN for a concept without samples.
    """

    stable_rank: Tensor
    concept_cosine: Tensor


class _CodeMoments(NamedTuple):
    """Additive sums over samples with a nonzero code."""

    second_moment: Tensor  # [d_sae, d_sae] float64, of the unit codes
    concept_sums: Tensor  # [n_concepts, d_sae] float64, of the unit codes
    samples: Tensor  # [n_concepts] int64


def code_similarity(codes: Tensor, concepts: Tensor, n_concepts: int) -> CodeSimilarityResult:
    r"""Compute the stable rank of the matrix of cosines between samples' codes, and its mean per pair of concepts.

    .. math:: S_{nm} = u_n \cdot u_m, \quad u_n = z_n / \|z_n\|, \qquad
        \mathrm{stable\ rank}(S) = \mathrm{tr}(S) / \|S\|_2

    The ``N x N`` matrix :math:`S = U U^T` is never built: :math:`U^T U` has the same nonzero eigenvalues, and the mean
    over a pair of concepts is the product of their mean unit codes. Samples with an all-zero code have no direction and
    are ignored; unlabeled samples enter the stable rank only.

    Args:
        codes: ``(batch, d_sae)``.
        concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.
        n_concepts: Number of concepts.

    Returns:
        The stable rank and the mean cosine for each pair of concepts.

    Raises:
        ValueError: if a tensor has the wrong shape or dtype, or a label is out of range.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics.functional import code_similarity
        >>> codes = torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0], [0.0, 3.0, 4.0]])
        >>> result = code_similarity(codes, torch.tensor([0, 0, 1]), n_concepts=2)
        >>> result.stable_rank
        tensor(1.5000, dtype=torch.float64)
        >>> result.concept_cosine
        tensor([[1., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    return _code_similarity_compute(*_code_similarity_update(codes, concepts, n_concepts))


def _code_similarity_update(codes: Tensor, concepts: Tensor, n_concepts: int) -> _CodeMoments:
    """Sum the moments of one batch."""
    codes = check_matrix("codes", codes)
    members = membership(concepts, n_concepts, codes.shape[0]).double()
    unit = unit_rows(codes)
    members = members * (unit != 0).any(dim=1, keepdim=True)
    return _CodeMoments(unit.T @ unit, members.T @ unit, members.sum(dim=0).long())


def unit_rows(codes: Tensor) -> Tensor:
    """Divide each row by its norm, in float64; zero rows stay zero."""
    codes = codes.double()
    norms: Tensor = torch.linalg.vector_norm(codes, dim=1, keepdim=True).clamp(min=torch.finfo(codes.dtype).tiny)
    return codes / norms


def _code_similarity_compute(second_moment: Tensor, concept_sums: Tensor, samples: Tensor) -> CodeSimilarityResult:
    """Summarize the N x N matrix by the moments."""
    pairs = samples.double()[:, None] * samples.double()
    return CodeSimilarityResult(
        stable_rank=stable_rank(second_moment), concept_cosine=concept_sums @ concept_sums.T / pairs
    )
