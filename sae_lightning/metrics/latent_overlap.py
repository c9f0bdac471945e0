"""Metric class of latent overlap."""

from torch import Tensor

from sae_lightning.metrics._base import SAEMetric
from sae_lightning.metrics.functional._inputs import check_matrix, check_size
from sae_lightning.metrics.functional.latent_overlap import (
    LatentOverlapResult,
    _latent_overlap_compute,
    _latent_overlap_update,
    check_share,
)


class LatentOverlap(SAEMetric):
    r"""Jaccard index between each latent of an SAE and each latent of another SAE, by the samples on which they fire.

    .. math:: J_{ij} = \frac{|F_i \cap G_j|}{|F_i \cup G_j|}

    Memory: ``d_sae * d_other`` int64. Functional form: :func:`sae_lightning.metrics.functional.latent_overlap`.

    Args:
        d_sae: Number of latents of the first SAE.
        d_other: Number of latents of the second SAE, among which counterparts are searched.
        min_jaccard: Smallest index of two latents that are counterparts, between 0 and 1.
        seed: Seed of the random pairing of samples, the chance level.

    Raises:
        ValueError: if a size is below 1, or ``min_jaccard`` is out of range.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics import LatentOverlap
        >>> metric = LatentOverlap(d_sae=2, d_other=1)
        >>> metric.update(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0], [1.0]]))
        >>> metric.update(torch.tensor([[0.0, 1.0], [0.0, 0.0]]), torch.tensor([[1.0], [0.0]]))
        >>> metric.compute().best
        tensor([0.6667, 0.3333], dtype=torch.float64)
    """

    together: Tensor
    fired: Tensor
    other_fired: Tensor
    samples: Tensor

    def __init__(self, d_sae: int, d_other: int, min_jaccard: float = 0.5, seed: int = 0) -> None:
        super().__init__()
        self.d_sae = check_size("d_sae", d_sae, minimum=1)
        self.d_other = check_size("d_other", d_other, minimum=1)
        self.min_jaccard = check_share("min_jaccard", min_jaccard)
        self.seed = seed
        self._add_counter("together", d_sae, d_other)
        self._add_counter("fired", d_sae)
        self._add_counter("other_fired", d_other)
        self._add_counter("samples")

    def update(self, codes: Tensor, others: Tensor) -> None:
        """Add one batch.

        Args:
            codes: Codes of the first SAE, ``(batch, d_sae)``.
            others: Codes of the second SAE for the same samples, ``(batch, d_other)``.

        Raises:
            ValueError: if a tensor has the wrong shape or dtype, or the numbers of samples differ.
        """
        codes = check_matrix("codes", codes, columns=self.d_sae)
        others = check_matrix("others", others, columns=self.d_other, rows=codes.shape[0])
        self._add(_latent_overlap_update(codes, others), "together", "fired", "other_fired", "samples")

    def compute(self) -> LatentOverlapResult:
        """Return the overlap over all samples since the last reset."""
        return _latent_overlap_compute(
            self.together, self.fired, self.other_fired, self.samples, self.min_jaccard, self.seed
        )
