"""Latent overlap: latents of one SAE that have a counterpart in another SAE."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_lightning.metrics.functional._inputs import check_matrix
from sae_lightning.nn.firing import fires


class LatentOverlapResult(NamedTuple):
    """Overlap of the firings of two SAEs, and the share of latents without counterpart.

    Attributes:
        jaccard: ``(d_sae, d_other)``, number of samples on which both latents fire, divided by the number on which at
            least one fires; 0 for a dead latent.
        best: ``(d_sae,)``, each latent's largest Jaccard index; NaN for a dead latent.
        counterpart: ``(d_sae,)`` int64, the latent of the second SAE with that index, the lowest on a tie; -1 if the
            index is 0.
        by_chance: ``(d_sae,)``, each latent's largest index with samples paired at random; NaN for a dead latent.
        alone: Scalar, share of the live latents with a largest index below `min_jaccard`. NaN if none is alive.
        alone_by_chance: Scalar, the same share with samples paired at random.
    """

    jaccard: Tensor
    best: Tensor
    counterpart: Tensor
    by_chance: Tensor
    alone: Tensor
    alone_by_chance: Tensor


class _FiringPairs(NamedTuple):
    """Additive counts over samples."""

    together: Tensor  # [d_sae, d_other] int64
    fired: Tensor  # [d_sae] int64
    other_fired: Tensor  # [d_other] int64
    samples: Tensor  # [] int64


def latent_overlap(codes: Tensor, others: Tensor, min_jaccard: float = 0.5, seed: int = 0) -> LatentOverlapResult:
    r"""Compute the Jaccard index between each latent of an SAE and each latent of another SAE.

    .. math:: J_{ij} = \frac{|F_i \cap G_j|}{|F_i \cup G_j|}

    where :math:`F_i` and :math:`G_j` are the sets of samples on which the latents fire (|code| > 1e-6). Latents
    with an index of at least `min_jaccard` are counterparts. The chance level is the index with samples paired at
    random: the number of samples on which two latents then fire together has a hypergeometric distribution, which is
    drawn from once per pair of latents.

    Args:
        codes: Codes of the first SAE, ``(batch, d_sae)``.
        others: Codes of the second SAE for the same samples, ``(batch, d_other)``.
        min_jaccard: Smallest index of two latents that are counterparts, between 0 and 1.
        seed: Seed of the random pairing of samples, the chance level.

    Returns:
        The indices, each latent's counterpart, the share of latents without one, and the chance levels.

    Raises:
        ValueError: if a tensor has the wrong shape or dtype, the numbers of samples differ, or ``min_jaccard`` is out
            of range.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics.functional import latent_overlap
        >>> codes = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
        >>> result = latent_overlap(codes, torch.tensor([[1.0], [1.0], [1.0], [0.0]]))
        >>> result.best, result.alone
        (tensor([0.6667, 0.3333], dtype=torch.float64), tensor(0.5000, dtype=torch.float64))
    """
    check_share("min_jaccard", min_jaccard)
    return _latent_overlap_compute(*_latent_overlap_update(codes, others), min_jaccard=min_jaccard, seed=seed)


def check_share(name: str, value: float) -> float:
    """Return ``value`` if it lies between 0 and 1.

    Raises:
        ValueError: if it does not.
    """
    if not 0 <= value <= 1:
        raise ValueError(f"`{name}` must lie between 0 and 1, got {value}.")
    return value


def _latent_overlap_update(codes: Tensor, others: Tensor) -> _FiringPairs:
    """Count the firings in one batch."""
    codes = check_matrix("codes", codes)
    others = check_matrix("others", others, rows=codes.shape[0])
    f, g = fires(codes).double(), fires(others).double()  # autocast leaves float64 exact
    samples = torch.tensor(len(f), device=f.device)
    return _FiringPairs((f.T @ g).long(), f.sum(0).long(), g.sum(0).long(), samples)


def _latent_overlap_compute(
    together: Tensor, fired: Tensor, other_fired: Tensor, samples: Tensor, min_jaccard: float, seed: int
) -> LatentOverlapResult:
    """Compute the Jaccard indices and find each latent's counterpart."""
    jaccard = _jaccard(together, fired, other_fired)
    best, counterpart = jaccard.max(dim=1)
    by_chance = _jaccard(_shuffled(fired, other_fired, int(samples), seed), fired, other_fired).amax(dim=1)
    alive = fired > 0
    return LatentOverlapResult(
        jaccard=jaccard,
        best=torch.where(alive, best, torch.nan),
        counterpart=torch.where(best > 0, counterpart, -1),
        by_chance=torch.where(alive, by_chance, torch.nan),
        alone=(best[alive] < min_jaccard).double().mean(),
        alone_by_chance=(by_chance[alive] < min_jaccard).double().mean(),
    )


def _shuffled(fired: Tensor, other_fired: Tensor, samples: int, seed: int) -> Tensor:
    """Draw the number of samples on which each pair of latents fires together, with samples paired at random."""
    first, second = fired.cpu().numpy()[:, None], other_fired.cpu().numpy()
    drawn = np.random.default_rng(seed).hypergeometric(first, samples - first, second)
    return torch.from_numpy(drawn).to(fired.device)


def _jaccard(together: Tensor, fired: Tensor, other_fired: Tensor) -> Tensor:
    union = fired[:, None] + other_fired - together
    return together.double() / union.clamp(min=1)
