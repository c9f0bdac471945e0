"""Metric class of latent similarity."""

from torch import Tensor

from sae_lightning.metrics._base import SAEMetric
from sae_lightning.metrics.functional._inputs import check_matrix, check_size
from sae_lightning.metrics.functional.latent_similarity import (
    LatentSimilarityResult,
    _latent_similarity_compute,
    _latent_similarity_update,
)


class LatentSimilarity(SAEMetric):
    r"""Cosine between the latents' codes over all samples, and its mean within and across preferred concepts.

    .. math:: L_{ij} = \frac{\sum_n z_{ni} z_{nj}}{\sqrt{\sum_n z_{ni}^2} \sqrt{\sum_n z_{nj}^2}}

    All samples enter the cosine; labels only determine each latent's preferred concept, where its mean |code| is
    highest. Memory: ``d_sae ** 2`` float64.

    Functional form: :func:`sae_lightning.metrics.functional.latent_similarity`.

    Args:
        d_sae: Number of latents.
        n_concepts: Number of concepts.

    Raises:
        ValueError: if ``d_sae`` is below 1 or ``n_concepts`` negative.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics import LatentSimilarity
        >>> metric = LatentSimilarity(d_sae=3, n_concepts=2)
        >>> metric.update(torch.tensor([[3.0, 0.0, 0.0], [4.0, 5.0, 0.0]]), torch.tensor([0, 1]))
        >>> result = metric.compute()
        >>> result.within_concept, result.concept
        (tensor(0.8000, dtype=torch.float64), tensor([ 1,  1, -1]))
    """

    gram: Tensor
    fired: Tensor
    concept_sums: Tensor
    members: Tensor

    def __init__(self, d_sae: int, n_concepts: int) -> None:
        super().__init__()
        self.d_sae = check_size("d_sae", d_sae, minimum=1)
        self.n_concepts = check_size("n_concepts", n_concepts, minimum=0)
        self._add_sum("gram", d_sae, d_sae)
        self._add_counter("fired", d_sae)
        self._add_sum("concept_sums", n_concepts, d_sae)
        self._add_counter("members", n_concepts)

    def update(self, codes: Tensor, concepts: Tensor) -> None:
        """Add one batch.

        Args:
            codes: ``(batch, d_sae)``.
            concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.

        Raises:
            ValueError: if a tensor has the wrong shape or dtype, or a label is out of range.
        """
        codes = check_matrix("codes", codes, columns=self.d_sae)
        moments = _latent_similarity_update(codes, concepts, self.n_concepts)
        self._add(moments, "gram", "fired", "concept_sums", "members")

    def compute(self) -> LatentSimilarityResult:
        """Return the similarities over all samples since the last reset."""
        return _latent_similarity_compute(self.gram, self.fired, self.concept_sums, self.members)
