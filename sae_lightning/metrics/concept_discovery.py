"""Metric class of concept discovery."""

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
    r"""Agreement between the concepts and clusters of samples with similar codes.

    The sample-by-sample cosine matrix is split into ``ceil(stable rank)`` clusters by spectral clustering, and the
    clusters are compared with the concepts by the adjusted Rand index. At most ``max_samples`` labeled samples are
    kept, those whose activations have the lowest hash. The selection depends on the activations alone, not on batch
    size, order or number of processes, and repeated activations are kept once. Memory: ``max_samples * d_sae``.

    Functional form: :func:`sae_lightning.metrics.functional.concept_discovery`.

    Args:
        d_sae: Number of latents.
        n_concepts: Number of concepts.
        max_samples: Maximum number of samples to cluster; time grows with its square to cube.
        random_state: Seed of the clustering.

    Raises:
        ValueError: if ``d_sae`` or ``max_samples`` is below 1, or ``n_concepts`` negative.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822 (clustering; score and sampling are ours).

    Example:
        >>> import torch
        >>> from sae_lightning.metrics import ConceptDiscovery
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
        """Add one batch, and keep the ``max_samples`` samples with the lowest hash.

        Args:
            codes: ``(batch, d_sae)``, kept in float32.
            concepts: ``(batch,)`` int64, -1 for unlabeled samples, which are left out.
            keys: ``(batch, d_in)``, the raw activations; the hash of their float32 bits decides which samples are kept.

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
        """Cluster the samples kept since the last reset and score the clusters."""
        codes, labels = read_rows(self.rows)
        return concept_discovery(codes, labels, random_state=self.random_state)
