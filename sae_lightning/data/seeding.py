"""Seeds for the parts of a run, derived from one."""

import numpy as np
import torch


def seeded_generator(*parts: int) -> torch.Generator:
    """A generator whose stream belongs to a tuple of integers, such as (seed, split) or (seed, epoch).

    Tuples that differ anywhere give independent streams, on every platform and version alike.
    """
    low, high = np.random.SeedSequence([part % 2**64 for part in parts]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(low) | int(high) << 32)
