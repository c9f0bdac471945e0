"""Normalized MSE: squared reconstruction error relative to the variance of the data."""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.metrics.functional._inputs import check_matrix
from sae_lightning.metrics.functional._membership import membership, with_overall


class NormalizedMSEResult(NamedTuple):
    """Reconstruction error relative to the data.

    Attributes:
        overall: Scalar, normalized MSE of all samples, labeled or not.
        per_concept: ``(n_concepts,)``, normalized MSE of each concept's samples, with the variance around their mean.
        norm_ratio: Scalar, Frobenius norm of the error divided by that of the data (not squared, not centered).

    A ratio with a zero denominator is NaN.
    """

    overall: Tensor
    per_concept: Tensor
    norm_ratio: Tensor


class _Moments(NamedTuple):
    """Additive sums per concept, and last over all samples."""

    squared_error: Tensor  # [n_concepts + 1] float64
    squared_norm: Tensor  # [n_concepts + 1] float64
    total: Tensor  # [n_concepts + 1, d_in] float64
    samples: Tensor  # [n_concepts + 1] int64


def normalized_mse(x: Tensor, x_hat: Tensor, concepts: Tensor, n_concepts: int) -> NormalizedMSEResult:
    r"""Divide the squared reconstruction error by the variance of the data, over all samples and per concept.

    .. math:: \mathrm{NMSE}(G) = \frac{\sum_{n \in G} \|x_n - \hat x_n\|^2}{\sum_{n \in G} \|x_n - \bar x_G\|^2},
        \qquad \mathrm{norm\_ratio} = \frac{\|\hat X - X\|_F}{\|X\|_F}

    NMSE is 0 for a perfect reconstruction and 1 if every sample is reconstructed as the mean of its group G. The
    variance is computed from sums of :math:`x` and :math:`\|x\|^2`, which can be added over batches and processes, as
    :math:`\sum \|x\|^2 - \|\sum x\|^2 / N`. The sums are float64 because this difference cancels: with a mean of 1000
    standard deviations, float32 has no correct digit, float64 ten. A variance below the float32 resolution of the data
    is treated as zero.

    Args:
        x: Activations ``(batch, d_in)``.
        x_hat: Reconstructions ``(batch, d_in)``.
        concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.
        n_concepts: Number of concepts.

    Returns:
        The normalized MSE over all samples and per concept, and the ratio of norms.

    Raises:
        ValueError: if a tensor has the wrong shape or dtype, or a label is out of range.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822 (`norm_ratio` is their formal-language NMSE).

    Example:
        >>> import torch
        >>> from sae_lightning.metrics.functional import normalized_mse
        >>> x = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
        >>> result = normalized_mse(x, x + 0.5, torch.tensor([0, 0, 1, 1]), n_concepts=2)
        >>> result.overall, result.per_concept
        (tensor(0.0500, dtype=torch.float64), tensor([0.2500, 0.2500], dtype=torch.float64))
    """
    return _normalized_mse_compute(*_normalized_mse_update(x, x_hat, concepts, n_concepts))


def _normalized_mse_update(x: Tensor, x_hat: Tensor, concepts: Tensor, n_concepts: int) -> _Moments:
    """Sum the moments of one batch."""
    x = check_matrix("x", x).double()
    x_hat = check_matrix("x_hat", x_hat, rows=x.shape[0], columns=x.shape[1]).double()
    members = with_overall(membership(concepts, n_concepts, x.shape[0]))
    per_sample = torch.stack([(x_hat - x).square().sum(dim=1), x.square().sum(dim=1)], dim=1)
    squared_error, squared_norm = (members.T @ per_sample).unbind(dim=1)
    return _Moments(squared_error, squared_norm, members.T @ x, members.sum(dim=0).long())


def _normalized_mse_compute(
    squared_error: Tensor, squared_norm: Tensor, total: Tensor, samples: Tensor
) -> NormalizedMSEResult:
    """Compute the variances and divide by them."""
    variance = squared_norm - total.square().sum(dim=1) / samples.clamp(min=1)
    resolution = torch.finfo(torch.float32).eps ** 2
    nmse = torch.where(variance > resolution * squared_norm, squared_error / variance, torch.nan)
    norm_ratio = (squared_error[-1] / squared_norm[-1]).sqrt()
    norm_ratio = torch.where(squared_norm[-1] > 0, norm_ratio, torch.nan)
    return NormalizedMSEResult(overall=nmse[-1], per_concept=nmse[:-1], norm_ratio=norm_ratio)
