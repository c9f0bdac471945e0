"""Bottom-k sampling: a bounded selection from a stream, independent of batches, order and number of processes.

The ``size`` labeled samples whose content has the lowest hashes are kept. Selecting the lowest hashes of a union is
associative, commutative and idempotent, so that any split of the data into batches and processes gives the same
selection, also where padding repeats samples. Repeated contents are kept once; otherwise all copies of a frequent one,
such as a first token, would be kept or dropped together.

A sample is stored as one int32 row ``[hash, hash, label, code bits ...]``: the high and low 32 bits of the hash, the
label (-1 marks an empty row), and the bits of the float32 code, so that conversions of floating point states do not
round it.
"""

import torch
from torch import Tensor

HEADER = 3
_WORD = (1 << 32) - 1


def empty_rows(size: int, d_sae: int) -> Tensor:
    """Return empty rows, ``(size, HEADER + d_sae)`` int32."""
    return torch.full((size, HEADER + d_sae), -1, dtype=torch.int32)


def make_rows(codes: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
    """Encode samples as rows.

    Args:
        codes: ``(batch, d_sae)``, converted to float32.
        labels: ``(batch,)`` int64, -1 for rows to be ignored.
        keys: ``(batch, d_in)``, the content to be hashed, converted to float32.

    Returns:
        ``(batch, HEADER + d_sae)`` int32.
    """
    hashes = hash_rows(keys)
    header = torch.stack([hashes >> 32, _low_word(hashes), labels], dim=1).to(torch.int32)
    return torch.cat([header, codes.float().contiguous().view(torch.int32)], dim=1)


def keep_bottom(rows: Tensor, size: int) -> Tensor:
    """Keep the ``size`` distinct rows with the lowest (hash, label), sorted by them; empty rows fill the rest.

    Args:
        rows: ``(n, HEADER + d_sae)`` int32, ``n >= size``.
        size: Number of rows to keep.

    Returns:
        ``(size, HEADER + d_sae)`` int32.
    """
    label = rows[:, 2].long()
    hashes = (rows[:, 0].long() << 32) | (rows[:, 1].long() & _WORD)
    hashes = torch.where(label < 0, torch.iinfo(torch.int64).max, hashes)
    order = torch.sort(label, stable=True).indices
    order = order[torch.sort(hashes[order], stable=True).indices]
    hashes, label = hashes[order], label[order]
    drop = label < 0
    drop[1:] |= (hashes[1:] == hashes[:-1]) & (label[1:] == label[:-1])
    first = torch.sort(drop, stable=True).indices[:size]
    kept = rows[order[first]]
    return torch.where(drop[first][:, None], -1, kept)


def merge_bottom(stacked: Tensor) -> Tensor:
    """Merge the rows of several processes, ``(world, size, width)``, into ``(size, width)``."""
    return keep_bottom(stacked.flatten(0, 1), stacked.shape[1])


def read_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Decode the non-empty rows into codes ``(n, d_sae)`` float32 and labels ``(n,)`` int64."""
    rows = rows[rows[:, 2] >= 0]
    return rows[:, HEADER:].contiguous().view(torch.float32), rows[:, 2].long()


def hash_rows(keys: Tensor) -> Tensor:
    """Hash the float32 bits of each row to 64 bits, ``(batch,)`` int64, in integer arithmetic that wraps around.

    Each feature has its own multiplier, so that the hash depends on the order of the features; integer sums are exact,
    so that it does not depend on the order of summation.
    """
    bits = (keys.float() + 0.0).contiguous().view(torch.int32).long()  # + 0.0 makes -0.0 equal 0.0
    index = torch.arange(1, keys.shape[1] + 1, device=keys.device)
    weights = _mix(index * -7046029254386353131) | 1  # the increment of splitmix64; | 1 because odd factors lose no bit
    return _mix(_mix(bits * weights + index).sum(dim=1) * 0x2545F4914F6CDD1D)


def _mix(value: Tensor) -> Tensor:
    """Finalizer of splitmix64: each input bit affects each output bit."""
    value = (value ^ _shift(value, 30)) * -4658895280553007687
    value = (value ^ _shift(value, 27)) * -7723592293110705685
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64; torch's ``>>`` is arithmetic."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _low_word(value: Tensor) -> Tensor:
    """Return the lower 32 bits as a signed 32-bit number."""
    low = value & _WORD
    return torch.where(low > (1 << 31) - 1, low - (1 << 32), low)
