"""A diagnosis is done within minutes, in the memory of its samples."""

import pytest
import torch

from tests.benchmarks.diagnosis import measure


@pytest.mark.slow
def test_a_hundred_thousand_samples_take_three_minutes() -> None:
    torch.set_num_threads(1)
    found = measure(100_000, 768, 12)
    # processor time of one thread: unlike wall time it hardly depends on what else runs, and two cores do no worse
    assert found["processor_s"] < 180
    assert found["more_memory_gb"] < 3 * found["samples_gb"]
