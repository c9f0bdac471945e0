"""Metric class of L0."""

from torch import Tensor

from sae_lightning.metrics._base import SAEMetric
from sae_lightning.metrics.functional._inputs import check_size
from sae_lightning.metrics.functional.l0 import L0Result, _l0_compute, _l0_update


class L0(SAEMetric):
    r"""Mean number of latents that fire per sample, over all samples and per concept.

    .. math:: L_0 = \frac{1}{N} \sum_n \sum_i [|z_{ni}| > 10^{-6}]

    Functional form: :func:`sae_lightning.metrics.functional.l0`.

    Args:
        n_concepts: Number of concepts.

    Raises:
        ValueError: if ``n_concepts`` is negative.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics import L0
        >>> metric = L0(n_concepts=1)
        >>> metric.update(torch.tensor([[1.0, 0.5, 0.0], [0.0, 2.0, 0.0]]), torch.tensor([0, 0]))
        >>> metric.update(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([-1]))
        >>> metric.compute()
        L0Result(overall=tensor(2., dtype=torch.float64), per_concept=tensor([1.5000], dtype=torch.float64))
    """

    active: Tensor
    samples: Tensor

    def __init__(self, n_concepts: int) -> None:
        super().__init__()
        self.n_concepts = check_size("n_concepts", n_concepts, minimum=0)
        self._add_counter("active", n_concepts + 1)
        self._add_counter("samples", n_concepts + 1)

    def update(self, codes: Tensor, concepts: Tensor) -> None:
        """Add the counts of one batch.

        Args:
            codes: ``(batch, d_sae)``.
            concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.

        Raises:
            ValueError: if a tensor has the wrong shape or dtype, or a label is out of range.
        """
        self._add(_l0_update(codes, concepts, self.n_concepts), "active", "samples")

    def compute(self) -> L0Result:
        """Return the L0 over all samples since the last reset."""
        return _l0_compute(self.active, self.samples)
