"""Firing counts, the state of both concept F1 and monosemanticity."""

from torch import Tensor

from sae_lightning.metrics._base import SAEMetric
from sae_lightning.metrics.functional._firing_counts import firing_counts
from sae_lightning.metrics.functional._inputs import check_matrix, check_size


class FiringCountsMetric(SAEMetric):
    """Base class that counts how often each latent fires in each concept. Memory: ``n_concepts * d_sae`` int64.

    A ``MetricCollection`` detects metrics with equal states and updates the counts once for all of them.
    """

    true_positives: Tensor
    fired: Tensor
    members: Tensor

    def __init__(self, d_sae: int, n_concepts: int) -> None:
        super().__init__()
        self.d_sae = check_size("d_sae", d_sae, minimum=1)
        self.n_concepts = check_size("n_concepts", n_concepts, minimum=0)
        self._add_counter("true_positives", n_concepts, d_sae)
        self._add_counter("fired", d_sae)
        self._add_counter("members", n_concepts)

    def update(self, codes: Tensor, concepts: Tensor) -> None:
        """Add the counts of one batch.

        Args:
            codes: ``(batch, d_sae)``.
            concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.

        Raises:
            ValueError: if a tensor has the wrong shape or dtype, or a label is out of range.
        """
        codes = check_matrix("codes", codes, columns=self.d_sae)
        counts = firing_counts(codes, concepts, self.n_concepts)
        self._add(counts, "true_positives", "fired", "members")
