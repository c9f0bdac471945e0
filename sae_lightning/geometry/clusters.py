"""Clusters that stand in for concepts where no sample has a label."""

from typing import NamedTuple

import torch
from torch import Tensor

_VALUES = 2**24  # distances that are held at a time


class Clusters(NamedTuple):
    """Pseudo-concepts: every sample belongs to its nearest centre."""

    centres: Tensor
    """`(n_clusters, d_in)`."""

    @property
    def names(self) -> list[str]:
        """A name for each, which does not hide that it is no concept."""
        return [f"cluster {i}" for i in range(len(self.centres))]

    def of(self, x: Tensor) -> Tensor:
        """The cluster of each sample, int64 `(n,)`."""
        rows = torch.split(x, max(1, _VALUES // len(self.centres)))
        return torch.cat([torch.cdist(part, self.centres).argmin(1) for part in rows])


def cluster(x: Tensor, n_clusters: int, seed: int = 0) -> Clusters:
    """Find clusters by k-means on mini-batches.

    They are no concepts: they are convex by construction, so that convex cells can always find them, and a model's
    own concepts may run through several of them.

    Args:
        x: Samples, float `(n, d_in)`, of which at least `n_clusters` differ.
        n_clusters: Number of clusters, at least 1.
        seed: Seed of the initial centres and batches.

    Raises:
        ValueError: If `n_clusters` is out of range.

    Source: Sculley (2010), Web-scale k-means clustering; scikit-learn's MiniBatchKMeans.
    """
    if not 1 <= n_clusters <= len(x):
        raise ValueError(f"n_clusters must lie between 1 and the number of samples, {len(x)}, but is {n_clusters}")
    from sklearn.cluster import MiniBatchKMeans

    mean = x.mean(0, dtype=torch.float64).to(x.dtype)
    centred = (x - mean).float()
    scale = centred.abs().amax().clamp(min=torch.finfo(torch.float32).tiny)
    means = MiniBatchKMeans(n_clusters, batch_size=4096, n_init=3, random_state=seed % 2**32)
    means.fit((centred / scale).cpu().numpy())
    centres = torch.as_tensor(means.cluster_centers_, dtype=x.dtype, device=x.device) * scale.to(x.dtype) + mean
    return Clusters(torch.unique(centres, dim=0))  # k-means repeats a centre where fewer samples differ
