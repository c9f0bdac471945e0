"""Latent overlap as a metric class."""

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
    r"""Jaccard index of the firing of every latent of an SAE with every latent of another, on the same samples.

    .. math:: J_{ij} = \frac{|F_i \cap G_j|}{|F_i \cup G_j|}

    Memory: ``d_sae * d_other`` int64. Functional twin: :func:`sae_lightning.metrics.functional.latent_overlap`.

    Args:
        d_sae: Number of latents of the SAE whose latents are looked at.
        d_other: Number of latents of the SAE in which their counterparts are looked for.
        min_jaccard: Index from which two latents are counterparts, between 0 and 1.
        seed: Seed of the draw that tells what chance gives.

    Raises:
        ValueError: if a size is below 1, or ``min_jaccard`` is out of range.

    Example:
        >>> import torch
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
            codes: Codes of the SAE whose latents are looked at, ``(batch, d_sae)``.
            others: Codes of the other SAE for the same samples, ``(batch, d_other)``.

        Raises:
            ValueError: if a tensor has the wrong shape or dtype, or the numbers of samples differ.
        """
        codes = check_matrix("codes", codes, columns=self.d_sae)
        others = check_matrix("others", others, columns=self.d_other, rows=codes.shape[0])
        self._add(_latent_overlap_update(codes, others), "together", "fired", "other_fired", "samples")

    def compute(self) -> LatentOverlapResult:
        """Overlap over everything seen since the last reset."""
        return _latent_overlap_compute(
            self.together, self.fired, self.other_fired, self.samples, self.min_jaccard, self.seed
        )
