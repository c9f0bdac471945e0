"""What a diagnosis takes grows no faster than its samples, in time and in memory."""

import subprocess
import sys

import pytest

from tests.helpers.runs import ROOT, process_environment


def measured(n_samples: int) -> dict[str, float]:
    """What the benchmark prints: in a process of its own, whose highest memory use is that of the diagnosis."""
    command = [sys.executable, "-m", "benchmarks.diagnosis", "--samples", str(n_samples)]
    command += ["--d_in", "256", "--threads", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=process_environment())
    return {name: float(value) for name, value in (line.split() for line in done.stdout.splitlines())}


@pytest.mark.slow
def test_time_and_memory_grow_no_faster_than_the_samples() -> None:
    small, large = measured(20_000), measured(60_000)
    assert large["more_memory_gb"] < 3 * large["samples_gb"]
    assert large["processor_s"] < 3 * small["processor_s"]
