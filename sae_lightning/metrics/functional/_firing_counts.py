"""How often each latent fires in each concept: the counts behind precision, recall and F1."""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.metrics.functional._membership import labelled, membership
from sae_lightning.nn.firing import fires

EPS = 1e-12


class FiringCounts(NamedTuple):
    """Additive int64 counts over labelled samples.

    Attributes:
        true_positives: ``(n_concepts, d_sae)``, samples of the concept on which the latent fires.
        fired: ``(d_sae,)``, labelled samples on which the latent fires.
        members: ``(n_concepts,)``, samples of the concept.
    """

    true_positives: Tensor
    fired: Tensor
    members: Tensor


def firing_counts(
    codes: Tensor, concepts: Tensor, n_concepts: int, within: float | None = None, at_all: float | None = None
) -> FiringCounts:
    """Count firings per concept, leaving unlabelled samples out.

    The product of two 0/1 matrices is exact in float32 up to 2**24 samples per call, but not in half precision: hence
    the guard against autocast.

    Args:
        codes: ``(batch, d_sae)``.
        concepts: ``(batch,)`` int64 with -1 for unlabelled, or ``(batch, n_concepts)`` bool.
        n_concepts: Number of concepts.
        within: Threshold above which a latent fires in a concept, ``None`` for the usual one.
        at_all: Threshold above which it fires at all, ``None`` for the usual one.

    Returns:
        The counts of this batch.
    """
    members = membership(concepts, n_concepts, codes.shape[0])
    known = labelled(concepts)[:, None]
    firing = fires(codes) if within is None else fires(codes, within)
    fired = firing if at_all is None else fires(codes, at_all)
    with torch.autocast(device_type=codes.device.type, enabled=False):
        true_positives = members.T @ firing.float()
    return FiringCounts(true_positives.long(), (fired & known).sum(dim=0), members.sum(dim=0).long())


def firing_scores(true_positives: Tensor, fired: Tensor, members: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Precision, recall and F1 of every latent as a detector of every concept.

    Args:
        true_positives: ``(n_concepts, d_sae)``.
        fired: ``(d_sae,)``.
        members: ``(n_concepts,)``.

    Returns:
        Three float64 tensors ``(n_concepts, d_sae)``, with NaN rows for concepts without samples.
    """
    hits = true_positives.double()
    hits = torch.where(members[:, None] > 0, hits, torch.nan)
    precision = hits / (fired.double() + EPS)
    recall = hits / (members.double()[:, None] + EPS)
    return precision, recall, 2 * precision * recall / (precision + recall + EPS)
