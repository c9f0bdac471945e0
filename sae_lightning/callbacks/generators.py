"""The states of the global random generators, as values that checkpoints load with `weights_only=True`."""

import random
from typing import Any

import numpy as np
import torch


def generator_states() -> dict[str, Any]:
    """States of the global generators of torch (every device), numpy and Python."""
    kind, words, *rest = np.random.get_state()  # noqa: NPY002  (what user code may draw from)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": [kind, torch.from_numpy(np.asarray(words, dtype=np.int64)), *rest],
        "python": random.getstate(),
    }


def restore_generators(states: dict[str, Any]) -> None:
    """Set the global generators to what `generator_states` returned."""
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():  # on a machine with other devices there is nothing to restore
        torch.cuda.set_rng_state_all(states["cuda"])
    kind, words, *rest = states["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(states["python"])
