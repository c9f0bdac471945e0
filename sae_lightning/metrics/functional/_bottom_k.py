"""A bounded sample of a stream that does not depend on batches, order or processes.

Every labelled sample is named by a hash of its content, and the ``size`` samples with the lowest names are kept
(bottom-k sampling). Taking the lowest names of a union is associative, commutative and idempotent: any split of the
data into batches and processes ends with the same sample, even where padding repeats some of it. Distinct contents
count once; else the copies of a frequent one (a first token, say) would enter all together or not at all.

A sample is one int32 row ``[name, name, label, code bits ...]``: the high and low half of a 64-bit name, the label
(-1 marks an empty row), and the float32 code reinterpreted, so that a state never loses a digit to a dtype conversion.
"""

import torch
from torch import Tensor

HEADER = 3
_WORD = (1 << 32) - 1


def empty_rows(size: int, d_sae: int) -> Tensor:
    """A sample of nothing: ``(size, HEADER + d_sae)`` int32."""
    return torch.full((size, HEADER + d_sae), -1, dtype=torch.int32)


def make_rows(codes: Tensor, labels: Tensor, keys: Tensor) -> Tensor:
    """Write samples as rows.

    Args:
        codes: ``(batch, d_sae)``, kept as float32.
        labels: ``(batch,)`` int64, -1 for rows to be ignored.
        keys: ``(batch, d_in)``, the content that names a sample, read as float32.

    Returns:
        ``(batch, HEADER + d_sae)`` int32.
    """
    name = hash_rows(keys)
    header = torch.stack([name >> 32, _low_word(name), labels], dim=1).to(torch.int32)
    return torch.cat([header, codes.float().contiguous().view(torch.int32)], dim=1)


def keep_bottom(rows: Tensor, size: int) -> Tensor:
    """Keep the ``size`` distinct rows with the lowest (name, label), in that order, then empty rows.

    Args:
        rows: ``(n, HEADER + d_sae)`` int32, ``n >= size``.
        size: How many rows to keep.

    Returns:
        ``(size, HEADER + d_sae)`` int32.
    """
    label = rows[:, 2].long()
    name = (rows[:, 0].long() << 32) | (rows[:, 1].long() & _WORD)
    name = torch.where(label < 0, torch.iinfo(torch.int64).max, name)
    order = torch.sort(label, stable=True).indices
    order = order[torch.sort(name[order], stable=True).indices]
    name, label = name[order], label[order]
    drop = label < 0
    drop[1:] |= (name[1:] == name[:-1]) & (label[1:] == label[:-1])
    first = torch.sort(drop, stable=True).indices[:size]
    kept = rows[order[first]]
    return torch.where(drop[first][:, None], -1, kept)


def merge_bottom(stacked: Tensor) -> Tensor:
    """Merge the samples of several processes, ``(world, size, width)`` into ``(size, width)``."""
    return keep_bottom(stacked.flatten(0, 1), stacked.shape[1])


def read_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Take the non-empty rows apart into codes ``(n, d_sae)`` float32 and labels ``(n,)`` int64."""
    rows = rows[rows[:, 2] >= 0]
    return rows[:, HEADER:].contiguous().view(torch.float32), rows[:, 2].long()


def hash_rows(keys: Tensor) -> Tensor:
    """Hash the float32 bits of every row to 64 bits, ``(batch,)`` int64; all arithmetic wraps around.

    Each feature is mixed with a multiplier of its own before the sum, which makes the order of features matter and the
    order of the summation not.
    """
    bits = (keys.float() + 0.0).contiguous().view(torch.int32).long()  # + 0.0 makes -0.0 equal 0.0
    index = torch.arange(1, keys.shape[1] + 1, device=keys.device)
    weights = _mix(index * -7046029254386353131) | 1  # splitmix64: odd, fixed, one per feature
    return _mix(_mix(bits * weights + index).sum(dim=1) * 0x2545F4914F6CDD1D)


def _mix(value: Tensor) -> Tensor:
    """Finalizer of splitmix64: every input bit reaches every output bit."""
    value = (value ^ _shift(value, 30)) * -4658895280553007687
    value = (value ^ _shift(value, 27)) * -7723592293110705685
    return value ^ _shift(value, 31)


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own copies the sign)."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _low_word(value: Tensor) -> Tensor:
    """Lower 32 bits as a signed 32-bit number."""
    low = value & _WORD
    return torch.where(low > (1 << 31) - 1, low - (1 << 32), low)
