"""Metric class of top examples."""

from torch import Tensor

from sae_lightning.metrics._base import SAEMetric
from sae_lightning.metrics.functional._inputs import check_matrix, check_size
from sae_lightning.metrics.functional.top_examples import (
    TopExamplesResult,
    _top_examples_compute,
    check_indices,
    empty_keys,
    merge_best,
    take_in,
)


class TopExamples(SAEMetric):
    """The ``n`` samples with the largest |code| of each latent, and how often and how strongly the latent fires.

    Only codes that fire (|code| > 1e-6) count. Magnitudes are compared in float32, and ties go to the smaller index, so
    that the result does not depend on batches, their order or the number of processes. Memory: ``8 * d_sae * n``
    bytes. Functional form: :func:`sae_lightning.metrics.functional.top_examples`.

    Args:
        d_sae: Number of latents.
        n: Number of samples to keep per latent.

    Raises:
        ValueError: if ``d_sae`` or ``n`` is below 1.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics import TopExamples
        >>> metric = TopExamples(d_sae=2, n=2)
        >>> metric.update(torch.tensor([[0.5, 0.0], [0.75, 0.0]]), torch.tensor([7, 8]))
        >>> metric.update(torch.tensor([[0.75, 1.0]]), torch.tensor([9]))
        >>> metric.compute().indices
        tensor([[ 8,  9],
                [ 9, -1]])
    """

    best: Tensor
    fired: Tensor
    total: Tensor
    samples: Tensor

    def __init__(self, d_sae: int, n: int = 8) -> None:
        super().__init__()
        self.d_sae = check_size("d_sae", d_sae, minimum=1)
        self.n = check_size("n", n, minimum=1)
        self.add_state("best", empty_keys(d_sae, n), dist_reduce_fx=merge_best)
        self._add_counter("fired", d_sae)
        self._add_sum("total", d_sae)
        self._add_counter("samples")

    def update(self, codes: Tensor, indices: Tensor) -> None:
        """Add one batch.

        Args:
            codes: ``(batch, d_sae)``.
            indices: ``(batch,)`` int64, a unique number for each sample in 0..2**32-1.

        Raises:
            ValueError: if a tensor has the wrong shape or dtype, or an index is out of range.
        """
        codes = check_matrix("codes", codes, columns=self.d_sae)
        check_indices(indices, codes.shape[0])
        self.best, *counts = take_in(self.best, codes, indices)
        self._add(tuple(counts), "fired", "total", "samples")

    def compute(self) -> TopExamplesResult:
        """Return the top examples over all samples since the last reset."""
        return _top_examples_compute(self.best, self.fired, self.total, self.samples)
