"""Metric class of concept F1."""

from sae_lightning.metrics._firing_counts import FiringCountsMetric
from sae_lightning.metrics.functional.concept_f1 import ConceptF1Result, _check_top_n, _concept_f1_compute


class ConceptF1(FiringCountsMetric):
    r"""F1 score of each latent as a detector of each concept, and of the best latents for each concept.

    .. math:: P = \frac{TP}{\mathrm{fired} + \epsilon}, \quad R = \frac{TP}{\mathrm{members} + \epsilon}, \quad
        F_1 = \frac{2 P R}{P + R + \epsilon}, \quad \epsilon = 10^{-12}

    A latent detects a concept in the samples where it fires (|code| > 1e-6). Unlabeled samples are not counted, since
    their concept is unknown. With a bool matrix of concepts every sample is counted, also where it has no concept.

    Functional form: :func:`sae_lightning.metrics.functional.concept_f1`.

    Args:
        d_sae: Number of latents.
        n_concepts: Number of concepts.
        top_n: Number of best latents of a concept to average.

    Raises:
        ValueError: if ``d_sae`` is below 1, ``n_concepts`` negative, or ``top_n`` not in 1..d_sae.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics import ConceptF1
        >>> metric = ConceptF1(d_sae=2, n_concepts=2, top_n=1)
        >>> codes = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
        >>> metric.update(codes, torch.tensor([0, 0, 1, 1]))
        >>> metric.compute().best
        tensor([1.0000, 0.8000], dtype=torch.float64)
    """

    def __init__(self, d_sae: int, n_concepts: int, top_n: int = 5) -> None:
        super().__init__(d_sae, n_concepts)
        self.top_n = _check_top_n(top_n, d_sae)

    def compute(self) -> ConceptF1Result:
        """Return the scores over all samples since the last reset."""
        return _concept_f1_compute(self.true_positives, self.fired, self.members, self.top_n)
