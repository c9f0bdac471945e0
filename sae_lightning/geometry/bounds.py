"""Bounds on single latents: for each concept, the best F1 of any receptive field of a family."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.geometry.f1 import bootstrap_interval, f1_of, outcomes
from sae_lightning.geometry.search import Labeled, Search
from sae_lightning.nn.receptive_fields import Points, ReceptiveField

_FEWEST_MEMBERS = 2  # least number of members of a concept in each split


class Bound(NamedTuple):
    """Best F1 of one family, float64 `(n_concepts,)` each, NaN for concepts that could not be fitted."""

    f1: Tensor
    """F1 on held-out samples."""
    low: Tensor
    """Lower end of its confidence interval."""
    high: Tensor
    """Upper end of its confidence interval."""
    train_f1: Tensor
    """F1 on the samples to which the receptive fields were fitted."""


def bounds(
    x: Tensor,
    concepts: Tensor,
    n_concepts: int,
    families: Sequence[ReceptiveField],
    held_out: tuple[Tensor, Tensor],
    seed: int = 0,
    n_resamples: int = 1000,
    confidence: float = 0.95,
) -> dict[ReceptiveField, Bound]:
    """Bound the F1 with which one latent can detect each concept, by fitting the receptive fields of each family.

    Fields are fitted to one set of samples and evaluated on another. The search is heuristic: better fields may exist,
    in particular if there are few samples for their dimension.

    Unlabeled samples are ignored, as in `ConceptF1`. A concept gets NaN if one of the sets holds fewer than two members
    of it, or members only.

    Args:
        x: Activations, `(n, d_in)`.
        concepts: Their concepts, int64 `(n,)` with -1 for unlabeled, or bool `(n, n_concepts)`.
        n_concepts: Number of concepts, at least 1.
        families: Families to fit.
        held_out: Activations and concepts on which F1 is reported.
        seed: Seed for the order of samples, random starts and resamples.
        n_resamples: Number of bootstrap resamples of the held-out samples, at least 1.
        confidence: Coverage of the intervals, between 0 and 1.

    Returns:
        A bound for each family.

    Raises:
        TypeError: If a family is not a `ReceptiveField`.
        ValueError: If shapes, labels or numbers are invalid, activations are not finite, or no sample is labeled.

    Example:
        >>> import torch
        >>> from sae_lightning.geometry import bounds
        >>> from sae_lightning.nn import Ball, HalfSpace
        >>> x = torch.linspace(-1, 1, 101)[:, None]
        >>> middle = (x.abs() < 0.35).long().flatten()
        >>> found = bounds(x, middle, 2, [HalfSpace(), Ball()], held_out=(x, middle))
        >>> {field.name: round(bound.f1[1].item(), 2) for field, bound in found.items()}
        {'half-space': 0.68, 'ball': 1.0}
    """
    for family in families:
        if not isinstance(family, ReceptiveField):
            raise TypeError(f"families must be receptive fields, but one is {family!r}")
    if n_concepts < 1:
        raise ValueError(f"n_concepts must be at least 1, but is {n_concepts}")
    if n_resamples < 1:
        raise ValueError(f"n_resamples must be at least 1, but is {n_resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, but is {confidence}")
    members, labeled = _members("concepts", x, concepts, n_concepts)
    held_out_members, held_out_labeled = _members("held_out", *held_out, n_concepts)
    if held_out[0].shape[1] != x.shape[1]:
        raise ValueError(f"held_out must have d_in = {x.shape[1]}, as x has, but has {held_out[0].shape[1]}")
    fittable = _fittable(members) & _fittable(held_out_members)
    found = {family: torch.full((len(Bound._fields), n_concepts), math.nan).double() for family in families}
    if fittable.any():
        generator = torch.Generator().manual_seed(seed)
        labeled = labeled[torch.randperm(len(labeled), generator=generator)]
        # one member of each concept comes first, so that every part of the data has members
        one_of_each = torch.unique(members[labeled][:, fittable].byte().argmax(0))
        labeled = labeled[_to_the_front(one_of_each, len(labeled))]
        training, mean, scale = _standardized(x[labeled])
        search = Search(Labeled(Points.of(training), members[labeled][:, fittable].T.contiguous()), seed)
        tested = Points.of((held_out[0][held_out_labeled].float() - mean) / scale)
        tested_members = held_out_members[held_out_labeled][:, fittable].T
        for family, bound in found.items():
            best = search.best(family)
            counts = outcomes(family.score(tested, best.parameters)[0] > best.thresholds[0, :, None], tested_members)
            interval = bootstrap_interval(counts, tested_members.shape[1], n_resamples, confidence, generator)
            bound[:, fittable] = torch.stack([f1_of(counts), *interval, best.f1[0]])
    return {family: Bound(*bound) for family, bound in found.items()}


def _members(name: str, x: Tensor, concepts: Tensor, n_concepts: int) -> tuple[Tensor, Tensor]:
    """Return membership, bool `(n, n_concepts)`, and the indices of labeled samples, int64 `(n_labeled,)`."""
    if x.ndim != 2 or not x.is_floating_point() or not bool(x.isfinite().all()):
        raise ValueError(
            f"activations must be finite floating-point numbers (n, d_in), but those of {name} are not: they have "
            f"shape {tuple(x.shape)} and dtype {x.dtype}"
        )
    if concepts.dtype == torch.bool:
        if concepts.shape != (len(x), n_concepts):
            raise ValueError(
                f"{name} of dtype bool must have shape {(len(x), n_concepts)}, but has {tuple(concepts.shape)}"
            )
        members, labeled = concepts, torch.arange(len(x))
    else:
        if concepts.dtype != torch.int64 or concepts.shape != (len(x),):
            raise ValueError(
                f"{name} must hold int64 labels ({len(x)},) or a bool matrix, but has shape {tuple(concepts.shape)} "
                f"and dtype {concepts.dtype}"
            )
        wrong = concepts[(concepts < -1) | (concepts >= n_concepts)]
        if len(wrong):
            raise ValueError(f"{name} must hold labels from -1 to {n_concepts - 1}, but holds {int(wrong[0])}")
        members, labeled = concepts[:, None] == torch.arange(n_concepts), (concepts >= 0).nonzero().flatten()
    if not len(labeled):
        raise ValueError(f"{name} must label some samples, but all {len(x)} are unlabeled")
    return members, labeled


def _fittable(members: Tensor) -> Tensor:
    """Return which concepts have enough members, and also samples that are not members."""
    n_members = members.sum(0)
    return (n_members >= _FEWEST_MEMBERS) & (n_members < len(members))


def _to_the_front(chosen: Tensor, n: int) -> Tensor:
    """Return the integers from 0 to n - 1 with the chosen ones first and the others in order."""
    others = torch.ones(n, dtype=torch.bool)
    others[chosen] = False
    return torch.cat([chosen, others.nonzero().flatten()])


def _standardized(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return samples with mean zero and mean squared norm one, the subtracted mean, and the scale divided by.

    This only helps the search, since all families are closed under shift and scale.
    """
    x = x.float()
    mean = x.mean(0)
    x = x - mean
    scale = x.square().sum(1).mean().sqrt()
    scale = torch.where(scale > 0, scale, 1)
    return x.div_(scale), mean, scale
