"""The batch that a data module yields and an SAE reads."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ActivationBatch(NamedTuple):
    """A batch of activations with the concept labels of its samples."""

    activations: Tensor
    """Raw activations, `(batch, d_in)`, or `(batch, input_layers, d_in)` for SAEs of several layers."""
    concepts: Tensor
    """Concept of each sample, int64 `(batch,)` with -1 for unlabeled, or bool `(batch, n_concepts)`."""
    positions: Tensor | None = None
    """Position of each sample in the stored order of its split, int64 `(batch,)`; None where it has none."""
    target: Tensor | None = None
    """What is to be reconstructed instead of the activations, `(batch, d_out)`; SAEs of inputs ignore it."""


def joined(batches: Sequence[ActivationBatch]) -> ActivationBatch:
    """Concatenate batches; all or none of them must have positions, and targets."""
    fields = dict(zip(ActivationBatch._fields, zip(*batches, strict=True), strict=True))
    for name, values in fields.items():
        if len({value is None for value in values}) > 1:
            raise ValueError(f"all batches must have {name}, or none, but some do")
    return ActivationBatch._make(None if values[0] is None else torch.cat(values) for values in fields.values())


def taken(batch: ActivationBatch, rows: Tensor | slice) -> ActivationBatch:
    """Return some samples of a batch."""
    return ActivationBatch._make(None if values is None else values[rows] for values in batch)


def as_batch(batch: object) -> ActivationBatch:
    """Convert what common data loaders yield to an ActivationBatch.

    Args:
        batch: An ActivationBatch, a tensor `x`, `(x,)` or `(x, concepts)`. Samples without concepts are unlabeled (-1).

    Only an ActivationBatch may hold more, such as the positions of its samples.

    Raises:
        TypeError: If `batch` is none of these.

    Example:
        >>> import torch
        >>> from sae_lightning.data.batch import as_batch
        >>> as_batch(torch.zeros(2, 3)).concepts
        tensor([-1, -1])
    """
    if isinstance(batch, ActivationBatch):
        if not isinstance(batch.target, Tensor | None):
            raise TypeError(f"a batch's target must be a tensor or None, but is {type(batch.target).__name__}")
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
