"""Concept discovery as a metric class."""

import torch
from torch import Tensor

from sae_lightning.metrics._base import SAEMetric
from sae_lightning.metrics.functional._bottom_k import (
    empty_rows,
    keep_bottom,
    make_rows,
    merge_bottom,
    read_rows,
)
from sae_lightning.metrics.functional._inputs import check_matrix, check_size
from sae_lightning.metrics.functional._membership import check_concepts
from sae_lightning.metrics.functional.concept_discovery import (
    ConceptDiscoveryResult,
    check_partition,
    concept_discovery,
)


class ConceptDiscovery(SAEMetric):
    r"""Cluster samples by the cosine of their codes and compare the clusters with the concepts.

    Spectral clustering of the sample-by-sample cosine matrix into ``ceil(stable rank)`` clusters, scored by the
    adjusted Rand index. Clustering needs samples, so at most ``max_samples`` labelled ones are kept: those whose
    activations have the lowest hash. Which ones these are depends on the activations alone, and not on batch size,
    order or number of processes; activations that occur more than once count once. Memory: ``max_samples * d_sae``.

    Source: Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822 (clustering; score and sampling are ours). Functional
    twin: :func:`sae_lightning.metrics.functional.concept_discovery`.

    Args:
        d_sae: Number of latents.
        n_concepts: Number of concepts.
        max_samples: The most samples to cluster; time grows with its square to cube.
        random_state: Seed of the clustering.

    Raises:
        ValueError: if ``d_sae`` or ``max_samples`` is below 1, or ``n_concepts`` negative.

    Example:
        >>> import torch
        >>> metric = ConceptDiscovery(d_sae=2, n_concepts=2)
        >>> codes = torch.tensor([[1.0, 0.1], [0.1, 1.0], [2.0, 0.0], [0.0, 2.0]])
        >>> metric.update(codes, torch.tensor([0, 1, 0, 1]), keys=codes)
        >>> metric.compute().adjusted_rand
        tensor(1., dtype=torch.float64)
    """

    rows: Tensor

    def __init__(self, d_sae: int, n_concepts: int, max_samples: int = 1024, random_state: int = 0) -> None:
        super().__init__()
        self.d_sae = check_size("d_sae", d_sae, minimum=1)
        self.n_concepts = check_size("n_concepts", n_concepts, minimum=0)
        self.max_samples = check_size("max_samples", max_samples, minimum=1)
        self.random_state = random_state
        self.add_state("rows", empty_rows(max_samples, d_sae), dist_reduce_fx=merge_bottom)

    def update(self, codes: Tensor, concepts: Tensor, keys: Tensor) -> None:
        """Offer one batch to the sample.

        Args:
            codes: ``(batch, d_sae)``, kept in float32.
            concepts: ``(batch,)`` int64, -1 for unlabelled samples, which are left out.
            keys: ``(batch, d_in)``, the raw activations; their float32 bits decide which samples are kept.

        Raises:
            ValueError: if ``concepts`` is a bool matrix, a tensor has the wrong shape or dtype, or a label is out of
                range.
        """
        codes = check_matrix("codes", codes, columns=self.d_sae)
        keys = check_matrix("keys", keys, rows=codes.shape[0])
        check_partition(concepts)
        check_concepts(concepts, self.n_concepts, codes.shape[0])
        self.rows = keep_bottom(torch.cat([self.rows, make_rows(codes, concepts, keys)]), self.max_samples)

    def compute(self) -> ConceptDiscoveryResult:
        """Cluster the samples kept since the last reset."""
        codes, labels = read_rows(self.rows)
        return concept_discovery(codes, labels, random_state=self.random_state)
