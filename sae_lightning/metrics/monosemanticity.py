"""Monosemanticity as a metric class."""

from sae_lightning.metrics._firing_counts import FiringCountsMetric
from sae_lightning.metrics.functional.monosemanticity import MonosemanticityResult, _monosemanticity_compute


class Monosemanticity(FiringCountsMetric):
    r"""Largest share that one concept has in a latent's F1 scores.

    .. math:: m_i = \max_c \frac{F_{ci}}{\sum_{c'} F_{c'i}}

    1 means that latent i fires in one concept only. It says nothing about recall.

    A latent fires where |code| > 1e-6, which makes the counts exact and additive. The authors' own
    definition divides each latent's codes by their norm over all samples first; that needs all codes at once and is
    therefore offered by the functional twin only (``normalize=True``).

    Source: Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822. Functional twin:
    :func:`sae_lightning.metrics.functional.monosemanticity`.

    Args:
        d_sae: Number of latents.
        n_concepts: Number of concepts.

    Raises:
        ValueError: if ``d_sae`` is below 1 or ``n_concepts`` negative.

    Example:
        >>> import torch
        >>> metric = Monosemanticity(d_sae=3, n_concepts=2)
        >>> codes = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
        >>> metric.update(codes, torch.tensor([0, 0, 1, 1]))
        >>> metric.compute().per_latent
        tensor([1.0000, 0.6667,    nan], dtype=torch.float64)
    """

    def compute(self) -> MonosemanticityResult:
        """Monosemanticity over everything seen since the last reset."""
        return _monosemanticity_compute(self.true_positives, self.fired, self.members)
