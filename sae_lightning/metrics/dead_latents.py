"""Metric class of dead latents."""

from torch import Tensor

from sae_lightning.metrics._base import SAEMetric
from sae_lightning.metrics.functional._inputs import check_matrix, check_size
from sae_lightning.metrics.functional.dead_latents import (
    DeadLatentsResult,
    _dead_latents_compute,
    _dead_latents_update,
)


class DeadLatents(SAEMetric):
    r"""Share of latents that never fire, :math:`|\{i : |z_{ni}| \le 10^{-6}\ \forall n\}| / d_{sae}`.

    Functional form: :func:`sae_lightning.metrics.functional.dead_latents`.

    Args:
        d_sae: Number of latents.

    Raises:
        ValueError: if ``d_sae`` is below 1.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics import DeadLatents
        >>> metric = DeadLatents(d_sae=2)
        >>> metric.update(torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
        >>> metric.compute()
        DeadLatentsResult(fraction=tensor(0.5000, dtype=torch.float64), n_dead=tensor(1), alive=tensor([ True, False]))
    """

    fired: Tensor
    samples: Tensor

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        self.d_sae = check_size("d_sae", d_sae, minimum=1)
        self._add_counter("fired", d_sae)
        self._add_counter("samples")

    def update(self, codes: Tensor) -> None:
        """Add the counts of one batch.

        Args:
            codes: ``(batch, d_sae)``.

        Raises:
            ValueError: if ``codes`` is not a floating point matrix with ``d_sae`` columns.
        """
        codes = check_matrix("codes", codes, columns=self.d_sae)
        self._add(_dead_latents_update(codes), "fired", "samples")

    def compute(self) -> DeadLatentsResult:
        """Return the latents that fired on no sample since the last reset."""
        return _dead_latents_compute(self.fired, self.samples)
