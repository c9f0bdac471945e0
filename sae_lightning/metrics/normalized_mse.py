"""Metric class of normalized MSE."""

from torch import Tensor

from sae_lightning.metrics._base import SAEMetric
from sae_lightning.metrics.functional._inputs import check_matrix, check_size
from sae_lightning.metrics.functional.normalized_mse import (
    NormalizedMSEResult,
    _normalized_mse_compute,
    _normalized_mse_update,
)


class NormalizedMSE(SAEMetric):
    r"""Squared reconstruction error divided by the variance of the data, over all samples and per concept.

    .. math:: \mathrm{NMSE}(G) = \frac{\sum_{n \in G} \|x_n - \hat x_n\|^2}{\sum_{n \in G} \|x_n - \bar x_G\|^2}

    The variance is computed from sums of :math:`x` and :math:`\|x\|^2`, which can be added over batches and processes,
    in float64 because of cancellation in :math:`\sum \|x\|^2 - \|\sum x\|^2 / N`. Memory: ``n_concepts * d_in``.

    Functional form: :func:`sae_lightning.metrics.functional.normalized_mse`.

    Args:
        d_in: Dimension of the activations.
        n_concepts: Number of concepts.

    Raises:
        ValueError: if ``d_in`` is below 1 or ``n_concepts`` negative.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics import NormalizedMSE
        >>> metric = NormalizedMSE(d_in=1, n_concepts=2)
        >>> x = torch.tensor([[0.0], [2.0], [4.0], [6.0]])
        >>> metric.update(x, x + 0.5, torch.tensor([0, 0, 1, 1]))
        >>> result = metric.compute()
        >>> result.overall, result.per_concept
        (tensor(0.0500, dtype=torch.float64), tensor([0.2500, 0.2500], dtype=torch.float64))
    """

    squared_error: Tensor
    squared_norm: Tensor
    total: Tensor
    samples: Tensor

    def __init__(self, d_in: int, n_concepts: int) -> None:
        super().__init__()
        self.d_in = check_size("d_in", d_in, minimum=1)
        self.n_concepts = check_size("n_concepts", n_concepts, minimum=0)
        self._add_sum("squared_error", n_concepts + 1)
        self._add_sum("squared_norm", n_concepts + 1)
        self._add_sum("total", n_concepts + 1, d_in)
        self._add_counter("samples", n_concepts + 1)

    def update(self, x: Tensor, x_hat: Tensor, concepts: Tensor) -> None:
        """Add one batch.

        Args:
            x: Activations ``(batch, d_in)``.
            x_hat: Reconstructions ``(batch, d_in)``.
            concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.

        Raises:
            ValueError: if a tensor has the wrong shape or dtype, or a label is out of range.
        """
        x = check_matrix("x", x, columns=self.d_in)
        moments = _normalized_mse_update(x, x_hat, concepts, self.n_concepts)
        self._add(moments, "squared_error", "squared_norm", "total", "samples")

    def compute(self) -> NormalizedMSEResult:
        """Return the errors over all samples since the last reset."""
        return _normalized_mse_compute(self.squared_error, self.squared_norm, self.total, self.samples)
