"""Metric class of code similarity."""

from torch import Tensor

from sae_lightning.metrics._base import SAEMetric
from sae_lightning.metrics.functional._inputs import check_matrix, check_size
from sae_lightning.metrics.functional.code_similarity import (
    CodeSimilarityResult,
    _code_similarity_compute,
    _code_similarity_update,
)


class CodeSimilarity(SAEMetric):
    r"""Stable rank of the matrix of cosines between samples' codes, and mean cosine for each pair of concepts.

    .. math:: S_{nm} = u_n \cdot u_m, \quad u_n = z_n / \|z_n\|, \qquad
        \mathrm{stable\ rank}(S) = \mathrm{tr}(S) / \|S\|_2

    The ``N x N`` matrix :math:`S = U U^T` is never built: :math:`U^T U` has the same nonzero eigenvalues and is a sum
    over samples. Memory: ``d_sae ** 2`` float64. Samples with an all-zero code are ignored.

    Functional form: :func:`sae_lightning.metrics.functional.code_similarity`.

    Args:
        d_sae: Number of latents.
        n_concepts: Number of concepts.

    Raises:
        ValueError: if ``d_sae`` is below 1 or ``n_concepts`` negative.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics import CodeSimilarity
        >>> metric = CodeSimilarity(d_sae=3, n_concepts=2)
        >>> metric.update(torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]]), torch.tensor([0, 0]))
        >>> metric.update(torch.tensor([[0.0, 3.0, 4.0]]), torch.tensor([1]))
        >>> metric.compute().stable_rank
        tensor(1.5000, dtype=torch.float64)
    """

    second_moment: Tensor
    concept_sums: Tensor
    samples: Tensor

    def __init__(self, d_sae: int, n_concepts: int) -> None:
        super().__init__()
        self.d_sae = check_size("d_sae", d_sae, minimum=1)
        self.n_concepts = check_size("n_concepts", n_concepts, minimum=0)
        self._add_sum("second_moment", d_sae, d_sae)
        self._add_sum("concept_sums", n_concepts, d_sae)
        self._add_counter("samples", n_concepts)

    def update(self, codes: Tensor, concepts: Tensor) -> None:
        """Add one batch.

        Args:
            codes: ``(batch, d_sae)``.
            concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.

        Raises:
            ValueError: if a tensor has the wrong shape or dtype, or a label is out of range.
        """
        codes = check_matrix("codes", codes, columns=self.d_sae)
        moments = _code_similarity_update(codes, concepts, self.n_concepts)
        self._add(moments, "second_moment", "concept_sums", "samples")

    def compute(self) -> CodeSimilarityResult:
        """Return the similarities over all samples since the last reset."""
        return _code_similarity_compute(self.second_moment, self.concept_sums, self.samples)
