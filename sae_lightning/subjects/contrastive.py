"""Learning without labels: what is made of two views of an image should be alike, and unlike all else."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the usual name)


def contrastive_loss(projected: Tensor, temperature: float) -> Tensor:
    r"""The normalised-temperature cross-entropy of pairs.

    $$ \mathrm{loss} = - \mathrm{mean}_i \log
       \frac{\exp(\cos(z_i, z_{p(i)}) / \tau)}{\sum_{j \neq i} \exp(\cos(z_i, z_j) / \tau)} $$

    where `p(i)` is the other view of the same image.

    Args:
        projected: `z`, `(2n, size)`: the second views follow all the first ones.
        temperature: `tau`.

    Source: Chen, Kornblith, Norouzi and Hinton (2020), "A Simple Framework for Contrastive Learning", arXiv 2002.05709.
    """
    z = F.normalize(projected, dim=1)
    similarities = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    other = torch.arange(len(z), device=z.device).roll(len(z) // 2)
    return F.cross_entropy(similarities, other)


class ProjectionHead(nn.Sequential):
    """A perceptron with batch normalisation between a model's features and the contrastive loss.

    Args:
        width: Size of the features.
        hidden: Size of the hidden layer.
        size: Size of what it returns.
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
    """For each of `n` rows a random choice of `n_kept` of `n_items`, in ascending order, int64 `(n, n_kept)`."""
    return torch.rand(n, n_items, generator=generator).argsort(1)[:, :n_kept].sort(1).values
