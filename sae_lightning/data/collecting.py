"""Draw samples from any loader of batches into memory."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from sae_lightning.data.batch import ActivationBatch, as_batch, joined, taken


def first_samples(loader: Iterable[Any], n: int) -> ActivationBatch:
    """Return the first `n` samples of a loader, or all if there are fewer.

    They are a random sample only where the loader's order is random, as in training.

    Raises:
        ValueError: If the loader is empty, or a batch holds NaN or infinities.

    Example:
        >>> import torch
        >>> from sae_lightning.data.collecting import first_samples
        >>> first_samples(torch.arange(6.0).view(3, 2, 1), 3).activations.flatten()
        tensor([0., 1., 2.])
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
    """Draw `n` samples of a loader uniformly without replacement, or return all if there are fewer.

    Samples keep the loader's order. Memory holds at most `2 n` samples and one batch.

    Args:
        loader: Yields batches; it is read to its end.
        n: Number of samples.
        seed: Seed of the draw.

    Raises:
        ValueError: If the loader is empty, or a batch holds NaN or infinities.

    Example:
        >>> import torch
        >>> from sae_lightning.data.collecting import random_samples
        >>> random_samples(torch.arange(6.0).view(3, 2, 1), 10, seed=0).activations.flatten()
        tensor([0., 1., 2., 3., 4., 5.])
    """
    generator = torch.Generator().manual_seed(seed)
    kept: list[ActivationBatch] = []
    keys = torch.empty(0, dtype=torch.float64)  # one random key per sample; the n smallest are kept
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
    return taken(joined(batches), rows)


def _checked(batch: Any) -> ActivationBatch:
    checked = as_batch(batch)
    if not bool(checked.activations.isfinite().all()):
        raise ValueError("activations must be finite, but the data hold NaN or infinite numbers")
    return checked
