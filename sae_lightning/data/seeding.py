"""Seeds for the parts of a run, derived from one."""

import numpy as np
import torch


def seeded_generator(*parts: int) -> torch.Generator:
    """A generator whose stream belongs to a tuple of integers, such as (seed, split) or (seed, epoch).

    Tuples that differ anywhere give independent streams, on every platform and version alike.
    """
    # two words per part, and their number in front: SeedSequence itself ignores trailing zeros
    words = [word for part in parts for word in (part % 2**32, part // 2**32 % 2**32)]
    low, high = np.random.SeedSequence([len(parts), *words]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(low) | int(high) << 32)
