"""Time and memory of one contender, in a process of its own.

`python -m benchmarks.measure JOB RESULTS` measures what the JSON file JOB asks for and appends one line of JSON
per shape to RESULTS, so that nothing measured is lost should the process die of memory.
"""

import ctypes
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks import naive, ours, peers
from benchmarks.contender import Contender, Entry
from benchmarks.loading import loader_shares
from benchmarks.problem import N_BATCHES, Problem, Shape, make_problem

ENTRIES: dict[str, Entry] = {e.name: e for e in [*ours.ENTRIES, *naive.ENTRIES, *peers.ENTRIES]}
WARMUP = N_BATCHES + 1  # after these, optimizers have their states and latents that never fire count as dead
_MIN_PAIRS = 3


@dataclass(frozen=True)
class Job:
    """What one process measures.

    Args:
        name: The entry's name, or "loading".
        shapes: Sizes that are measured however long it takes.
        widths: Sizes of the sweep, in increasing order of `d_sae`, with a third of the budget each.
        repeats: Timed pairs of step and product at most.
        budget: Seconds for the pairs of one shape; at least three pairs are timed.
        patience: Seconds that warm-up and three pairs may take in the sweep, where what would be slower is left out.
        memory: Bytes that a step may need.
        threads: CPU threads; None leaves torch's choice.
        device: cpu, in float32; or cuda, with products in bfloat16.
    """

    name: str
    shapes: list[Shape]
    widths: list[Shape]
    repeats: int
    budget: float
    patience: float
    memory: float
    threads: int | None
    device: str


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """Time of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median and upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")


def bare_product(problem: Problem) -> Callable[[], torch.Tensor]:
    """The encoder's product alone, in the type that products have, into memory that is there already."""
    dtype = problem.autocast or torch.float32
    x = problem.batches[0].to(dtype)
    rows = torch.randn(problem.shape.d_sae, problem.shape.d_in, device=problem.device).to(dtype)
    out = torch.empty(problem.shape.batch, problem.shape.d_sae, device=problem.device, dtype=dtype)
    return lambda: torch.mm(x, rows.T, out=out)


def time_pairs(contender: Contender, problem: Problem, repeats: int, budget: float) -> dict[str, Any]:
    """Times of steps and of the bare product, taken in turn so that both see the same machine."""
    product = bare_product(problem)
    product()
    pairs: list[tuple[float, float]] = []
    end = time.perf_counter() + budget
    while len(pairs) < repeats and (len(pairs) < _MIN_PAIRS or time.perf_counter() < end):
        x = problem.batches[len(pairs) % N_BATCHES]
        pairs.append((seconds(lambda x=x: contender.step(x), problem.device), seconds(product, problem.device)))
    return {
        "pairs": len(pairs),
        "step": quartiles([step for step, _ in pairs]),
        "product": quartiles([bare for _, bare in pairs]),
        "ratio": quartiles([step / bare for step, bare in pairs]),
    }


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return 1024 * int(line.split()[1])


def peak_memory(contender: Contender, problem: Problem) -> int | None:
    """Bytes that a step takes at its peak, gradients included, above what lies there between steps.

    What lies there: weights, the optimizer's state and the batches. On a CPU it is the process's resident memory, which
    counts whatever allocates. Its peak can be reset on Linux alone; elsewhere there is no number.
    """
    contender.optimizer.zero_grad(set_to_none=True)
    gc.collect()
    if problem.device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        contender.step(problem.batches[0])
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    reset = Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed must not pass for memory that lies there
    reset.write_text("5")
    before = _status("VmRSS")
    contender.step(problem.batches[0])
    return _status("VmHWM") - before


def matmul_peak() -> float:
    """Operations per second of the best of 20 large bfloat16 products on the GPU."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    best = min(seconds(lambda: a @ a, a.device) for _ in range(20))
    return 2 * 8192**3 / best


def fraction_of_peak(shape: Shape, step: float) -> float:
    """Share of the matmul peak that the five products of a dense step would need to take `step` seconds.

    Encode, decode, and the gradients of codes, atoms and encoder rows: what a sparse step saves counts in its favor.
    """
    return 5 * 2 * shape.batch * shape.d_sae * shape.d_in / step / matmul_peak()


def measure(entry: Entry, shape: Shape, job: Job, budget: float) -> dict[str, Any]:
    """Build a contender for one shape and measure it."""
    device = torch.device(job.device)
    torch.manual_seed(0)
    problem = make_problem(shape, device, torch.bfloat16 if device.type == "cuda" else None)
    contender = entry.build(problem)
    contender.calibrate(problem.batches[0])
    for i in range(WARMUP):
        contender.step(problem.batches[i % N_BATCHES])
    result = time_pairs(contender, problem, job.repeats, budget)
    result["samples_per_second"] = shape.batch / result["step"][1]
    result["memory"] = peak_memory(contender, problem)
    result["l0"], result["silent"] = contender.sparsity(problem.batches)
    if device.type == "cuda":
        result["fraction_of_peak"] = fraction_of_peak(shape, result["step"][1])
    return result


def why_left_out(entry: Entry, shape: Shape, narrower: tuple[Shape, float] | None, job: Job) -> str | None:
    """A sentence, where a shape would need too much memory or time."""
    needed = entry.bytes_needed(shape)
    if needed > job.memory:
        return f"left out: would need {needed / 1e9:,.0f} GB"
    if narrower is not None:
        before, step = narrower
        expected = step * shape.d_sae / before.d_sae * (WARMUP + _MIN_PAIRS)
        if expected > job.patience:
            return f"left out: would take {expected:,.0f} s (a step took {step:.1f} s at d_sae {before.d_sae})"
    return None


def run(job: Job, write: Callable[[dict[str, Any]], None]) -> None:
    """Measure every shape of a job, and write what came out."""
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    environment = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if job.name == "loading":
        for result in loader_shares(steps=job.repeats):
            write({"kind": "loading", **result, **environment})
        return
    if job.name == "harvest":
        from benchmarks.harvesting import cached_share, harvest_results  # needs the extra `activations`

        quick = job.repeats < 10
        for result in harvest_results(1 if quick else 5, quick):
            write({"kind": "harvest", **result, **environment})
        write({"kind": "loading", **cached_share(job.repeats, quick), **environment})
        return
    entry = ENTRIES[job.name]
    of = {"library": entry.library, "architecture": entry.architecture, **environment}
    for kind, shapes, budget in (("steps", job.shapes, job.budget), ("sweep", job.widths, job.budget / 3)):
        narrower: tuple[Shape, float] | None = None
        for shape in shapes:
            row = {"kind": kind, "shape": list(shape), **of}
            reason = why_left_out(entry, shape, narrower, job)
            if reason is not None:
                write({**row, "left_out": reason})
                continue
            result = measure(entry, shape, job, budget)
            narrower = (shape, result["step"][1]) if kind == "sweep" else None
            write({**row, **result})


def main() -> None:
    """Run the job in the file that the command line names."""
    fields = json.loads(Path(sys.argv[1]).read_text())
    job = Job(**{**fields, **{key: [Shape(*s) for s in fields[key]] for key in ("shapes", "widths")}})
    with Path(sys.argv[2]).open("a") as file:

        def write(result: dict[str, Any]) -> None:
            file.write(json.dumps(result) + "\n")
            file.flush()

        run(job, write)


def as_json(job: Job) -> str:
    """The job as the file that `main` reads."""
    return json.dumps(asdict(job))


if __name__ == "__main__":
    main()
