"""Top examples: the samples with the largest |code| of each latent."""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.metrics.functional._inputs import check_matrix, check_size
from sae_lightning.nn.firing import fires

_WORD = (1 << 32) - 1
_MAGNITUDE = (1 << 31) - 1  # the bits of a float32 without its sign
_EMPTY = -(1 << 63)  # the smallest key, which marks a missing example
_ENTRIES_AT_ONCE = 1 << 22  # codes per step; bounds memory where many latents fire


class TopExamplesResult(NamedTuple):
    """Top examples of each latent, and how often and how strongly it fires.

    Attributes:
        values: ``(d_sae, n)`` float32, the codes of largest magnitude, largest first; 0 if the latent fired less than n
            times.
        indices: ``(d_sae, n)`` int64, the samples with these codes; -1 if the latent fired less than n times.
        fired: ``(d_sae,)`` int64, number of samples on which the latent fires.
        frequency: ``(d_sae,)`` float64, share of the samples on which the latent fires. NaN without samples.
        mean_code: ``(d_sae,)`` float64, mean code over the samples on which the latent fires. NaN if it never fires.
        density: Scalar float64, share of all codes that fire. NaN without samples.
        samples: Scalar int64, number of samples.
    """

    values: Tensor
    indices: Tensor
    fired: Tensor
    frequency: Tensor
    mean_code: Tensor
    density: Tensor
    samples: Tensor


def top_examples(codes: Tensor, indices: Tensor, n: int = 8) -> TopExamplesResult:
    """Find the ``n`` samples with the largest |code| of each latent, and count its firings.

    Only codes that fire (|code| > 1e-6) count. Magnitudes are compared in float32; ties go to the smaller index.

    Args:
        codes: ``(batch, d_sae)``.
        indices: ``(batch,)`` int64, a unique number for each sample in 0..2**32-1, such as its position in the data.
        n: Number of samples to find per latent.

    Returns:
        The samples with their codes, and each latent's frequency and mean code.

    Raises:
        ValueError: if a tensor has the wrong shape or dtype, an index is out of range, or ``n`` is below 1.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics.functional import top_examples
        >>> result = top_examples(torch.tensor([[0.5, 0.0], [0.75, 0.0], [0.75, 1.0]]), torch.tensor([7, 8, 9]), n=2)
        >>> result.indices
        tensor([[ 8,  9],
                [ 9, -1]])
        >>> result.mean_code
        tensor([0.6667, 1.0000], dtype=torch.float64)
    """
    codes = check_matrix("codes", codes)
    check_indices(indices, codes.shape[0])
    best = empty_keys(codes.shape[1], check_size("n", n, minimum=1)).to(codes.device)
    return _top_examples_compute(*take_in(best, codes, indices))


def check_indices(indices: Tensor, rows: int) -> None:
    """Raise a ValueError unless there is one index in 0..2**32-1 for each row."""
    if indices.shape != (rows,):
        raise ValueError(f"`indices` must have one entry per sample, shape [{rows}], got {list(indices.shape)}.")
    if indices.dtype != torch.int64:
        raise ValueError(f"`indices` must be int64, got {indices.dtype}.")
    if rows and (indices.amin() < 0 or indices.amax() > _WORD):
        raise ValueError(f"`indices` must lie in 0..{_WORD}, got {indices.amin().item()} to {indices.amax().item()}.")


def empty_keys(d_sae: int, n: int) -> Tensor:
    """Return the keys of latents that have not fired yet: ``(d_sae, n)`` int64.

    The key of an example is a 64-bit integer: from the highest bit, the magnitude of its float32 code (31 bits, ordered
    as the values), 2**32 - 1 minus its index (32 bits), and the sign of the code (1 bit). The highest bit is flipped,
    so that signed integers have the order of unsigned ones. Larger keys have a larger magnitude, or the same magnitude
    and a smaller index.
    """
    return torch.full((d_sae, n), _EMPTY, dtype=torch.int64)


def take_in(best: Tensor, codes: Tensor, indices: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Merge a batch into the top examples so far, and count its firings.

    Keys are computed and sorted only for codes that fire and are at least as large as the latent's n-th example, so
    that most of the time is spent in one comparison of all codes.

    Args:
        best: ``(d_sae, n)`` int64, keys in descending order.
        codes: ``(batch, d_sae)``.
        indices: ``(batch,)`` int64.

    Returns:
        The new keys, ``(d_sae, n)`` in descending order; number of firings, ``(d_sae,)`` int64; sums of the codes that
        fire, ``(d_sae,)`` float64; number of samples, scalar int64.
    """
    d_sae = best.shape[0]
    fired = torch.zeros(d_sae, dtype=torch.int64, device=codes.device)
    total = torch.zeros(d_sae, dtype=torch.float64, device=codes.device)
    rows = max(1, _ENTRIES_AT_ONCE // d_sae)
    for start in range(0, len(codes), rows):
        part, names = codes[start : start + rows], indices[start : start + rows]
        row, latent = fires(part).nonzero(as_tuple=True)
        values = part[row, latent].float()
        fired += latent.bincount(minlength=d_sae)
        total.index_add_(0, latent, part[row, latent].double())
        able = values.abs() >= _values(best[:, -1]).abs()[latent]
        best = _merge(best, values[able], names[row[able]], latent[able])
    return best, fired, total, torch.full((), codes.shape[0], dtype=torch.int64, device=codes.device)


def _merge(best: Tensor, values: Tensor, indices: Tensor, latent: Tensor) -> Tensor:
    """Merge codes ``(m,)`` float32, with their samples and latents, ``(m,)`` int64, into the keys."""
    bits = values.view(torch.int32).long()
    keys = ((bits & _MAGNITUDE) << 33) | ((_WORD - indices) << 1) | (bits < 0)
    keys, order = (keys ^ _EMPTY).sort(descending=True)
    latent, by_latent = latent[order].sort(stable=True)
    first = torch.searchsorted(latent, torch.arange(best.shape[0], device=latent.device))
    place = torch.arange(len(latent), device=latent.device) - first[latent]
    fits = place < best.shape[1]
    offered = torch.full_like(best, _EMPTY)
    offered[latent[fits], place[fits]] = keys[by_latent][fits]
    return merge_best(torch.stack([best, offered]))


def merge_best(stacked: Tensor) -> Tensor:
    """Merge the keys of several batches or processes, ``(world, d_sae, n)``, into ``(d_sae, n)``."""
    return stacked.movedim(0, 1).flatten(1).topk(stacked.shape[2], dim=1).values


def _values(keys: Tensor) -> Tensor:
    """Decode the float32 codes in keys of any shape."""
    bits = keys ^ _EMPTY
    magnitude = ((bits >> 33) & _MAGNITUDE).to(torch.int32).view(torch.float32)
    return torch.where(bits & 1 == 1, -magnitude, magnitude)


def _top_examples_compute(best: Tensor, fired: Tensor, total: Tensor, samples: Tensor) -> TopExamplesResult:
    """Decode the keys and divide sums by counts."""
    return TopExamplesResult(
        values=_values(best),
        indices=torch.where(best > _EMPTY, _WORD - ((best >> 1) & _WORD), -1),
        fired=fired,
        frequency=torch.where(samples > 0, fired / samples.double(), torch.nan),
        mean_code=torch.where(fired > 0, total / fired.double(), torch.nan),
        density=torch.where(samples > 0, fired.sum() / (samples.double() * fired.numel()), torch.nan),
        samples=samples,
    )
