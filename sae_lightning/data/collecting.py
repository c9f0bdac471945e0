"""Samples in memory, out of any loader of batches."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae_lightning.data.batch import ActivationBatch, as_batch


def first_samples(loader: Iterable[Any], n: int) -> ActivationBatch:
    """The first `n` samples of a loader whose order is random, such as that of training batches, or all of them.

    Raises:
        ValueError: If the loader is empty, or a batch holds NaN or infinities.
    """
    batches: list[ActivationBatch] = []
    count = 0
    for batch in loader:
        batches.append(_checked(batch))
        count += len(batches[-1].activations)
        if count >= n:
            break
    return _joined(batches, slice(n))


def random_samples(loader: Iterable[Any], n: int, seed: int) -> ActivationBatch:
    """`n` samples of a loader in whatever order, all equally likely, or all of them; at most `2 n` are held.

    Args:
        loader: Yields batches; it is read to its end.
        n: Number of samples.
        seed: Seed of the choice.

    Raises:
        ValueError: If the loader is empty, or a batch holds NaN or infinities.
    """
    generator = torch.Generator().manual_seed(seed)
    kept: list[ActivationBatch] = []
    keys = torch.empty(0, dtype=torch.float64)  # the samples with the smallest are kept
    for batch in loader:
        kept.append(_checked(batch))
        keys = torch.cat([keys, torch.rand(len(kept[-1].activations), generator=generator, dtype=torch.float64)])
        if len(keys) > 2 * n:
            kept, keys = _smallest(kept, keys, n)
    return _joined(_smallest(kept, keys, n)[0], slice(None))


def _smallest(batches: list[ActivationBatch], keys: Tensor, n: int) -> tuple[list[ActivationBatch], Tensor]:
    if len(keys) <= n:
        return batches, keys
    chosen = keys.argsort()[:n].sort().values
    return [_joined(batches, chosen)], keys[chosen]


def _joined(batches: list[ActivationBatch], rows: slice | Tensor) -> ActivationBatch:
    if not batches or not sum(len(batch.activations) for batch in batches):
        raise ValueError("the data must hold at least one sample, but are empty")
    activations = torch.cat([batch.activations for batch in batches])
    concepts = torch.cat([batch.concepts for batch in batches])
    return ActivationBatch(activations[rows], concepts[rows])


def _checked(batch: Any) -> ActivationBatch:
    checked = as_batch(batch)
    if not bool(checked.activations.isfinite().all()):
        raise ValueError("activations must be finite, but the data hold NaN or infinite numbers")
    return checked
