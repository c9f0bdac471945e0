"""Contrastive learning: loss, projection head and random patch selection."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the usual name)


def contrastive_loss(projected: Tensor, temperature: float) -> Tensor:
    r"""Normalized temperature-scaled cross-entropy of pairs (NT-Xent).

    $$ \mathrm{loss} = - \mathrm{mean}_i \log
       \frac{\exp(\cos(z_i, z_{p(i)}) / \tau)}{\sum_{j \neq i} \exp(\cos(z_i, z_j) / \tau)} $$

    where `p(i)` is the other view of the same image.

    Args:
        projected: `z`, `(2n, size)`: all first views, then all second views.
        temperature: `tau`.

    Returns:
        Scalar loss.

    References:
        Chen, Kornblith, Norouzi and Hinton (2020), "A Simple Framework for Contrastive Learning", arXiv 2002.05709.

    Example:
        >>> import torch
        >>> from sae_lightning.subjects.contrastive import contrastive_loss
        >>> contrastive_loss(torch.ones(4, 2), temperature=1.0).exp()  # equal views: 1 in 3 by chance
        tensor(3.)
    """
    z = F.normalize(projected, dim=1)
    similarities = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy(similarities, other)


class ProjectionHead(nn.Sequential):
    """MLP with batch normalization that projects features for the contrastive loss.

    Args:
        width: Size of the features.
        hidden: Size of the hidden layer.
        size: Size of the output.

    Example:
        >>> import torch
        >>> from sae_lightning.subjects.contrastive import ProjectionHead
        >>> ProjectionHead(width=8, hidden=16, size=4)(torch.zeros(3, 8)).shape
        torch.Size([3, 4])
    """

    def __init__(self, width: int, hidden: int, size: int) -> None:
        super().__init__(
            nn.Linear(width, hidden, bias=False),
            nn.BatchNorm1d(hidden),
            nn.ReLU(),
            nn.Linear(hidden, size, bias=False),
            nn.BatchNorm1d(size, affine=False),
        )


def random_subsets(n: int, n_items: int, n_kept: int, generator: torch.Generator) -> Tensor:
    """Draw a random subset of indices for each row.

    Args:
        n: Number of rows.
        n_items: Number of items to draw from.
        n_kept: Size of a subset.
        generator: Source of randomness.

    Returns:
        Ascending indices, int64 `(n, n_kept)`.

    Example:
        >>> import torch
        >>> from sae_lightning.subjects.contrastive import random_subsets
        >>> random_subsets(2, n_items=3, n_kept=3, generator=torch.Generator())
        tensor([[0, 1, 2],
                [0, 1, 2]])
    """
    return torch.rand(n, n_items, generator=generator).argsort(1)[:, :n_kept].sort(1).values
