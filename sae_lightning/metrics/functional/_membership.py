"""Concept labels, as integers or as a bool matrix, and the membership matrix that both describe."""

import torch
from torch import Tensor


def membership(concepts: Tensor, n_concepts: int, batch: int | None = None) -> Tensor:
    """Convert concept labels to a 0/1 membership matrix.

    Args:
        concepts: ``(batch,)`` int64 with -1 for unlabeled samples, or ``(batch, n_concepts)`` bool.
        n_concepts: Number of concepts.
        batch: Required number of samples, ``None`` for any.

    Returns:
        Float32 tensor ``(batch, n_concepts)``; the rows of unlabeled samples are zero.

    Raises:
        ValueError: if a label lies outside -1..n_concepts-1, or shape, length or dtype are wrong.

    Example:
        >>> import torch
        >>> membership(torch.tensor([1, -1]), n_concepts=2)
        tensor([[0., 1.],
                [0., 0.]])
    """
    check_concepts(concepts, n_concepts, batch)
    if concepts.dtype == torch.bool:
        return concepts.float()
    return (concepts[:, None] == torch.arange(n_concepts, device=concepts.device)).float()


def labeled(concepts: Tensor) -> Tensor:
    """Return a mask of the labeled samples, ``(batch,)`` bool; all rows of a bool matrix are labeled."""
    if concepts.dtype == torch.bool:
        return torch.ones(concepts.shape[0], dtype=torch.bool, device=concepts.device)
    return concepts >= 0


def with_overall(members: Tensor) -> Tensor:
    """Append a column of ones, a last "concept" of all samples: ``(batch, n_concepts + 1)`` float64."""
    return torch.cat([members, members.new_ones(members.shape[0], 1)], dim=1).double()


def check_concepts(concepts: Tensor, n_concepts: int | None, batch: int | None = None) -> None:
    """Check that ``concepts`` are valid arguments of :func:`membership`.

    Args:
        concepts: The labels.
        n_concepts: Number of concepts, ``None`` for any.
        batch: Required number of samples, ``None`` for any.

    Raises:
        ValueError: if they are not.
    """
    if concepts.dtype == torch.bool:
        if concepts.ndim != 2 or n_concepts not in (None, concepts.shape[1]):
            wanted = f"[batch, n_concepts={n_concepts}]"
            raise ValueError(f"`concepts` of dtype bool must have shape {wanted}, got {list(concepts.shape)}.")
    elif concepts.dtype != torch.int64:
        raise ValueError(
            f"`concepts` must be int64 labels [batch] or a bool matrix [batch, n_concepts], got {concepts.dtype}."
        )
    elif concepts.ndim != 1:
        raise ValueError(f"`concepts` of dtype int64 must have shape [batch], got {list(concepts.shape)}.")
    if batch is not None and concepts.shape[0] != batch:
        raise ValueError(f"`concepts` must have one entry per sample ({batch}), got {concepts.shape[0]}.")
    if concepts.dtype == torch.int64 and concepts.numel() > 0:
        _check_range(concepts, n_concepts)


def _check_range(labels: Tensor, n_concepts: int | None) -> None:
    """Raise if a label lies outside -1..n_concepts-1. This synchronizes with the device, once per update."""
    lowest, highest = torch.stack(torch.aminmax(labels)).tolist()
    if lowest < -1 or (n_concepts is not None and highest >= n_concepts):
        rule = ">= -1" if n_concepts is None else f"in -1..{n_concepts - 1}"
        wrong = lowest if lowest < -1 else highest
        raise ValueError(f"`concepts` must hold labels {rule} (-1 is unlabeled), got {wrong}.")
