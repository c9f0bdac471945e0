"""Data for the tests of what latents fire on."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """500 samples of three labels, of which 50 are tested."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 500)
    np.save(folder / "x.npy", (rng.standard_normal((500, 4)) + 3 * np.eye(4)[kind]).astype(np.float32))
    np.save(folder / "y.npy", kind)
    return folder
