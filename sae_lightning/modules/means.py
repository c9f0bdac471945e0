"""Means over all samples of an evaluation, independent of batches and processes."""

import torch
from torch import Tensor

from sae_lightning.metrics._base import SAEMetric


class SampleMean(SAEMetric):
    r"""Mean of a per-sample quantity from the means of batches, $\sum_b n_b m_b / \sum_b n_b$.

    Sums are kept in float64 and counts in int64, and both are added up over processes before they are divided.
    (Lightning's own epoch means divide by the *integer mean* of the processes' counts, which is too small where these
    differ; torchmetrics' MeanMetric forgets the weights where it does not look for NaN.)
    """

    total: Tensor
    samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._add_sum("total")
        self._add_counter("samples")

    def update(self, mean: Tensor, n: int) -> None:
        """Add one batch.

        Args:
            mean: Mean over the batch, scalar; of any value where the batch is empty.
            n: Number of samples, at least 0.
        """
        total = mean.detach().double() * n if n else torch.zeros_like(self.total)  # the mean of no samples is NaN
        self._add((total, torch.full_like(self.samples, n)), "total", "samples")

    def compute(self) -> Tensor:
        """Return the mean over all samples, a float64 scalar; NaN if there are none."""
        return self.total / self.samples
