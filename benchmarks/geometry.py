"""How long the bounds of many concepts take, and how much memory.

OMP_NUM_THREADS=2 python -m benchmarks.geometry
"""

import resource
import time

import torch

from sae_lightning.geometry import bounds
from sae_lightning.nn import Cone, ConvexCell, HalfSpace

N, D_IN, N_CONCEPTS = 100_000, 768, 12


def main() -> None:
    """Fit the families of all architectures to overlapping Gaussian concepts, and print what it took."""
    generator = torch.Generator().manual_seed(0)
    centers = 0.15 * torch.randn(N_CONCEPTS, D_IN, generator=generator)
    labels = torch.randint(N_CONCEPTS, (N + N // 5,), generator=generator)
    x = torch.randn(len(labels), D_IN, generator=generator).add_(centers[labels])
    training, held_out = (x[:N], labels[:N]), (x[N:], labels[N:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    families = [HalfSpace(), Cone(), Cone(shared_apex=True), ConvexCell()]
    start, used = time.perf_counter(), time.process_time()
    found = bounds(*training, N_CONCEPTS, families, held_out)
    seconds, processor = time.perf_counter() - start, time.process_time() - used
    extra = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for family, bound in found.items():
        print(f"{family}: mean F1 {bound.f1.mean():.3f}, on its training samples {bound.train_f1.mean():.3f}")
    data = 4 * N * D_IN / 1024
    print(
        f"{seconds:.0f} s, {processor:.0f} s of processors; memory beside the samples: {extra / data:.1f} times theirs"
    )


if __name__ == "__main__":
    main()
