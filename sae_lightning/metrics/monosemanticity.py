"""Metric class of monosemanticity."""

from sae_lightning.metrics._firing_counts import FiringCountsMetric
from sae_lightning.metrics.functional.monosemanticity import MonosemanticityResult, _monosemanticity_compute


class Monosemanticity(FiringCountsMetric):
    r"""Largest F1 score of each latent, divided by the sum of its F1 scores over concepts.

    .. math:: m_i = \max_c \frac{F_{ci}}{\sum_{c'} F_{c'i}}

    It is 1 if latent i fires in one concept only, however small its recall.

    A latent fires where |code| > 1e-6, which makes the counts exact and additive. The authors' definition
    first divides each latent's codes by their norm over all samples; it needs all codes at once, so that only the
    functional form computes it (``normalize=True``).

    Functional form: :func:`sae_lightning.metrics.functional.monosemanticity`.

    Args:
        d_sae: Number of latents.
        n_concepts: Number of concepts.

    Raises:
        ValueError: if ``d_sae`` is below 1 or ``n_concepts`` negative.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics import Monosemanticity
        >>> metric = Monosemanticity(d_sae=3, n_concepts=2)
        >>> codes = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
        >>> metric.update(codes, torch.tensor([0, 0, 1, 1]))
        >>> metric.compute().per_latent
        tensor([1.0000, 0.6667,    nan], dtype=torch.float64)
    """

    def compute(self) -> MonosemanticityResult:
        """Return the monosemanticity over all samples since the last reset."""
        return _monosemanticity_compute(self.true_positives, self.fired, self.members)
