"""Clusters that replace concepts if no sample has a label."""

from typing import NamedTuple

import torch
from torch import Tensor

_VALUES = 2**24  # number of distances in memory at a time


class Clusters(NamedTuple):
    """Clusters given by their centers: every sample belongs to the nearest center.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry import Clusters
        >>> Clusters(torch.tensor([[0.0], [10.0]])).of(torch.tensor([[1.0], [8.0]]))
        tensor([0, 1])
    """

    centers: Tensor
    """Centers, `(n_clusters, d_in)`."""

    @property
    def names(self) -> list[str]:
        """Names of the clusters, which show that they are not labeled concepts."""
        return [f"cluster {i}" for i in range(len(self.centers))]

    def of(self, x: Tensor) -> Tensor:
        """Return the cluster of each sample of `x` `(n, d_in)`, int64 `(n,)`."""
        rows = torch.split(x, max(1, _VALUES // len(self.centers)))
        return torch.cat([torch.cdist(part, self.centers).argmin(1) for part in rows])


def cluster(x: Tensor, n_clusters: int, seed: int = 0) -> Clusters:
    """Find clusters by mini-batch k-means.

    Clusters are not concepts: they are convex by construction, so convex cells can always find them, and a concept of
    the model may extend over several clusters.

    Args:
        x: Samples, float `(n, d_in)`.
        n_clusters: Number of clusters, at least 1.
        seed: Seed of the initial centers and batches.

    Returns:
        The clusters: fewer than `n_clusters` if fewer samples are distinct.

    Raises:
        ValueError: If `n_clusters` is out of range.

    References:
        Sculley (2010), Web-scale k-means clustering; scikit-learn's MiniBatchKMeans.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry import cluster
        >>> x = torch.tensor([[1.0], [101.0], [3.0], [103.0]])
        >>> cluster(x, n_clusters=2).of(x)
        tensor([0, 1, 0, 1])
    """
    if not 1 <= n_clusters <= len(x):
        raise ValueError(f"n_clusters must lie between 1 and the number of samples, {len(x)}, but is {n_clusters}")
    from sklearn.cluster import MiniBatchKMeans

    mean = x.mean(0, dtype=torch.float64).to(x.dtype)
    centered = (x - mean).float()
    scale = centered.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    means = MiniBatchKMeans(n_clusters, batch_size=4096, n_init=3, random_state=seed % 2**32)
    means.fit((centered / scale).cpu().numpy())
    centers = torch.as_tensor(means.cluster_centers_, dtype=x.dtype, device=x.device) * scale.to(x.dtype) + mean
    return Clusters(torch.unique(centers, dim=0))  # k-means repeats a center if fewer samples are distinct
