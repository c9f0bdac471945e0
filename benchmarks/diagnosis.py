"""What a diagnosis takes: `python -m benchmarks.diagnosis` prints processor time, wall time and memory.

In use, 100,000 samples of 768 features with 12 concepts are to take at most three minutes on two cores.
"""

import argparse
import resource
import time

import torch
from torch import Tensor

from sae_lightning.cli.commands.diagnose import architectures_of
from sae_lightning.geometry import diagnose


def made(n: int, d_in: int, n_concepts: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Gaussian concepts with a spectrum that falls as those of language models do, and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_in, generator=generator).mul_(torch.logspace(0, -1.5, d_in))
    labels = torch.randint(n_concepts, (n,), generator=generator)
    centers = 0.03 * torch.randn(n_concepts, d_in, generator=torch.Generator().manual_seed(1))
    for concept, center in enumerate(centers):
        x[labels == concept] += center
    return x, labels


def measure(n: int, d_in: int, n_concepts: int) -> dict[str, float]:
    """Diagnose `n` samples with the presets, a quarter as many held out."""
    x, labels = made(n, d_in, n_concepts)
    held_out = made(n // 4, d_in, n_concepts, seed=2)
    names = [f"C{i}" for i in range(n_concepts)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    wall, processor = time.perf_counter(), time.process_time()
    found = diagnose(x, labels, names, held_out, architectures_of(None, d_in))
    return {
        "wall_s": time.perf_counter() - wall,
        "processor_s": time.process_time() - processor,
        "more_memory_gb": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6,
        "samples_gb": (x.nbytes + held_out[0].nbytes) / 1e9,
        "least_bound": min(verdict.min_bound.value for verdict in found.verdicts),
        "largest_bound": max(verdict.mean_bound for verdict in found.verdicts),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--d_in", type=int, default=768)
    parser.add_argument("--concepts", type=int, default=12)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    for name, value in measure(given.samples, given.d_in, given.concepts).items():
        print(f"{name:15} {value:8.2f}")


if __name__ == "__main__":
    main()
