"""Independent random streams derived from one seed."""

import numpy as np
import torch


def seeded_generator(*parts: int) -> torch.Generator:
    """Return a generator seeded by a tuple of integers, such as (seed, split) or (seed, epoch).

    Different tuples give independent streams. The seeds are the same on every platform and version.

    Example:
        >>> from sae_lightning.data.seeding import seeded_generator
        >>> seeded_generator(0, 1).initial_seed() == seeded_generator(0, 1, 0).initial_seed()
        False
    """
    # SeedSequence ignores trailing zeros, so the number of parts is part of the seed
    words = [word for part in parts for word in (part % 2**32, part // 2**32 % 2**32)]
    low, high = np.random.SeedSequence([len(parts), *words]).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(low) | int(high) << 32)
