"""What a data source hands to an SAE."""

from typing import NamedTuple

import torch
from torch import Tensor


class ActivationBatch(NamedTuple):
    """A batch of activations with the concepts of its samples."""

    activations: Tensor
    """Raw activations, `(batch, d_in)`."""
    concepts: Tensor
    """Concept of each sample, int64 `(batch,)` with -1 for unlabelled, or bool `(batch, n_concepts)`."""
    positions: Tensor | None = None
    """Position of each sample in the stored order of its split, int64 `(batch,)`; None where it has none."""


def as_batch(batch: object) -> ActivationBatch:
    """Accept what common data loaders yield: an ActivationBatch, a tensor, `(x,)` or `(x, concepts)`.

    Only an ActivationBatch may hold more, such as the positions of its samples.

    Raises:
        TypeError: If it is none of these.
    """
    if isinstance(batch, ActivationBatch):
        return batch
    if isinstance(batch, Tensor):
        batch = (batch,)
    if isinstance(batch, (tuple, list)) and 1 <= len(batch) <= 2 and all(isinstance(t, Tensor) for t in batch):
        x = batch[0]
        concepts = batch[1] if len(batch) == 2 else torch.full(x.shape[:1], -1, device=x.device)
        return ActivationBatch(x, concepts)
    raise TypeError(
        "a batch must be an ActivationBatch, a tensor of activations, or a tuple (activations, concepts), "
        f"but is {type(batch).__name__}"
    )
