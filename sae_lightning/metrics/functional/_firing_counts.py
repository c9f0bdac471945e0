"""Counts of each latent's firings in each concept, and their precision, recall and F1."""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.metrics.functional._membership import labeled, membership
from sae_lightning.nn.firing import fires

EPS = 1e-12


class FiringCounts(NamedTuple):
    """Additive int64 counts over labeled samples.

    Attributes:
        true_positives: ``(n_concepts, d_sae)``, samples of the concept on which the latent fires.
        fired: ``(d_sae,)``, labeled samples on which the latent fires.
        members: ``(n_concepts,)``, samples of the concept.
    """

    true_positives: Tensor
    fired: Tensor
    members: Tensor


def firing_counts(
    codes: Tensor, concepts: Tensor, n_concepts: int, within: float | None = None, at_all: float | None = None
) -> FiringCounts:
    """Count firings per concept in labeled samples.

    Args:
        codes: ``(batch, d_sae)``.
        concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.
        n_concepts: Number of concepts.
        within: Threshold of |code| in ``true_positives``, ``None`` for that of :func:`sae_lightning.nn.firing.fires`.
        at_all: Threshold of |code| in ``fired``, ``None`` for ``within``.

    Returns:
        The counts of this batch.
    """
    members = membership(concepts, n_concepts, codes.shape[0])
    known = labeled(concepts)[:, None]
    firing = fires(codes) if within is None else fires(codes, within)
    fired = firing if at_all is None else fires(codes, at_all)
    # products of 0/1 matrices are exact in float32 up to 2**24 samples, but not in the half precision of autocast
    with torch.autocast(device_type=codes.device.type, enabled=False):
        true_positives = members.T @ firing.float()
    return FiringCounts(true_positives.long(), (fired & known).sum(dim=0), members.sum(dim=0).long())


def firing_scores(true_positives: Tensor, fired: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return precision, recall and F1 of each latent as a detector of each concept.

    Args:
        true_positives: ``(n_concepts, d_sae)``.
        fired: ``(d_sae,)``.
        members: ``(n_concepts,)``.

    Returns:
        Precision, recall and F1, each ``(n_concepts, d_sae)`` float64, with NaN rows for concepts without samples.
    """
    hits = true_positives.double()
    hits = torch.where(members[:, None] > 0, hits, torch.nan)
    precision = hits / (fired.double() + EPS)
    recall = hits / (members.double()[:, None] + EPS)
    return precision, recall, 2 * precision * recall / (precision + recall + EPS)
