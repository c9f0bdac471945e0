"""Concept discovery: agreement between concepts and clusters of samples with similar codes."""

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.metrics.functional._inputs import check_matrix
from sae_lightning.metrics.functional._membership import check_concepts
from sae_lightning.metrics.functional._stable_rank import stable_rank
from sae_lightning.metrics.functional.code_similarity import unit_rows


class ConceptDiscoveryResult(NamedTuple):
    """Agreement between clusters and concepts, and the samples that were clustered.

    Attributes:
        adjusted_rand: Scalar, adjusted Rand index between clusters and labels: 1 for full agreement, 0 for chance. NaN
            with fewer than two labeled samples.
        n_clusters: Scalar int64, number of clusters of the nonzero codes, ``ceil(stable_rank)``; 0 if all are zero.
        stable_rank: Scalar, stable rank of the sample-by-sample cosine matrix. NaN if all codes are zero.
        codes: ``(samples, d_sae)``, the codes of the labeled samples, ordered by label.
        labels: ``(samples,)`` int64, their labels.
    """

    adjusted_rand: Tensor
    n_clusters: Tensor
    stable_rank: Tensor
    codes: Tensor
    labels: Tensor


def concept_discovery(codes: Tensor, labels: Tensor, random_state: int = 0) -> ConceptDiscoveryResult:
    r"""Cluster samples by the cosine of their codes and compare the clusters with the labels.

    The cosine matrix :math:`S = U U^T` of the unit codes, clipped at 0, is split into ``ceil(stable rank)`` clusters by
    spectral clustering, and the clusters are compared with the labels by the adjusted Rand index. Samples with an
    all-zero code form one further cluster, so that a silent SAE does not score better. Memory is quadratic in the
    number of samples.

    Args:
        codes: ``(samples, d_sae)``.
        labels: ``(samples,)`` int64, -1 for unlabeled samples, which are left out.
        random_state: Seed of the clustering.

    Returns:
        The score, the number of clusters, and the clustered codes ordered by label.

    Raises:
        ValueError: if ``labels`` is a bool matrix (overlapping concepts), or a tensor has the wrong shape or dtype.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822 (clustering; the score is ours).

    Example:
        >>> import torch
        >>> from sae_lightning.metrics.functional import concept_discovery
        >>> codes = torch.tensor([[1.0, 0.1], [0.1, 1.0], [2.0, 0.0], [0.0, 2.0]])
        >>> result = concept_discovery(codes, torch.tensor([0, 1, 0, 1]))
        >>> result.adjusted_rand, result.n_clusters
        (tensor(1., dtype=torch.float64), tensor(2))
    """
    codes = check_matrix("codes", codes)
    check_partition(labels)
    check_concepts(labels, None, codes.shape[0])
    order = torch.sort(labels, stable=True).indices
    order = order[labels[order] >= 0]
    codes, labels = codes[order], labels[order]
    clusters, n_clusters, rank = _cluster(codes, random_state)
    return ConceptDiscoveryResult(
        adjusted_rand=torch.tensor(_adjusted_rand(labels, clusters), dtype=torch.float64, device=codes.device),
        n_clusters=torch.tensor(n_clusters, device=codes.device),
        stable_rank=rank,
        codes=codes,
        labels=labels,
    )


def check_partition(concepts: Tensor) -> None:
    """Raise for a bool matrix: its concepts may overlap, but clusters are compared with a partition."""
    if concepts.dtype == torch.bool:
        raise ValueError(
            "`concepts` must be int64 labels [batch] for concept discovery, got a bool matrix: "
            "clusters cannot be compared with overlapping concepts."
        )


def _cluster(codes: Tensor, random_state: int) -> tuple[Tensor, int, Tensor]:
    """Return each sample's cluster ``(samples,)``, the number of clusters and the stable rank."""
    unit = unit_rows(codes)
    nonzero = (unit != 0).any(dim=1)
    unit = unit[nonzero]
    gram = unit.T @ unit if unit.shape[1] < unit.shape[0] else unit @ unit.T
    rank = stable_rank(gram)
    clusters = torch.full((codes.shape[0],), -1, dtype=torch.int64, device=codes.device)
    if not bool(torch.isfinite(rank)):
        return clusters, 0, rank
    # a stable rank of n, rounded up, must not become n + 1 clusters
    n_clusters = max(1, min(math.ceil(float(rank) - 1e-9), unit.shape[0]))
    clusters[nonzero] = _spectral_clustering(unit, n_clusters, random_state).to(codes.device)
    return clusters, n_clusters, rank


def _spectral_clustering(unit: Tensor, n_clusters: int, random_state: int) -> Tensor:
    """Cluster unit codes ``(samples, d_sae)`` by their cosine; scikit-learn runs on the CPU."""
    if n_clusters == 1:
        return torch.zeros(unit.shape[0], dtype=torch.int64)
    if n_clusters == unit.shape[0]:
        return torch.arange(unit.shape[0])
    from sklearn.cluster import SpectralClustering

    cosine = (unit @ unit.T).clamp(0.0, 1.0).cpu().numpy()
    model = SpectralClustering(n_clusters, affinity="precomputed", random_state=random_state)
    with warnings.catch_warnings():
        # Concepts with disjoint latents have a disconnected graph, which is the best case and needs no warning
        # (raised in sklearn/manifold/_spectral_embedding.py).
        warnings.filterwarnings("ignore", message="Graph is not fully connected")
        return torch.from_numpy(model.fit_predict(cosine)).long()


def _adjusted_rand(labels: Tensor, clusters: Tensor) -> float:
    """Return the adjusted Rand index, NaN for fewer than two samples."""
    if labels.numel() < 2:
        return math.nan
    from sklearn.metrics import adjusted_rand_score

    return float(adjusted_rand_score(labels.cpu().numpy(), clusters.cpu().numpy()))
