"""L0: number of latents that fire per sample."""

from typing import NamedTuple

from torch import Tensor

from sae_lightning.metrics.functional._inputs import check_matrix
from sae_lightning.metrics.functional._membership import membership, with_overall
from sae_lightning.nn.firing import fires


class L0Result(NamedTuple):
    """Mean number of latents that fire per sample.

    Attributes:
        overall: Scalar, mean over all samples, labeled or not. NaN without samples.
        per_concept: ``(n_concepts,)``, mean over the samples of each concept. NaN for a concept without samples.
    """

    overall: Tensor
    per_concept: Tensor


def l0(codes: Tensor, concepts: Tensor, n_concepts: int) -> L0Result:
    r"""Compute the mean number of latents that fire per sample, over all samples and per concept.

    .. math:: L_0 = \frac{1}{N} \sum_n \sum_i [|z_{ni}| > 10^{-6}]

    Args:
        codes: ``(batch, d_sae)``.
        concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.
        n_concepts: Number of concepts.

    Returns:
        The mean over all samples, and the mean over each concept's samples.

    Raises:
        ValueError: if a tensor has the wrong shape or dtype, or a label is out of range.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics.functional import l0
        >>> codes = torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
        >>> l0(codes, torch.tensor([0, 0, -1]), n_concepts=1)
        L0Result(overall=tensor(2., dtype=torch.float64), per_concept=tensor([1.5000], dtype=torch.float64))
    """
    return _l0_compute(*_l0_update(codes, concepts, n_concepts))


def _l0_update(codes: Tensor, concepts: Tensor, n_concepts: int) -> tuple[Tensor, Tensor]:
    """Return firings and samples per concept, and last over all samples, each ``(n_concepts + 1,)`` int64."""
    codes = check_matrix("codes", codes)
    members = with_overall(membership(concepts, n_concepts, codes.shape[0]))
    active = members.T @ fires(codes).sum(dim=1).double()
    return active.long(), members.sum(dim=0).long()


def _l0_compute(active: Tensor, samples: Tensor) -> L0Result:
    """Divide firings by samples."""
    mean = active.double() / samples.double()
    return L0Result(overall=mean[-1], per_concept=mean[:-1])
