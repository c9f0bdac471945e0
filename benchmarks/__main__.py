"""Time, memory and throughput of a training step of every architecture, against other libraries.

Run all of it with `make bench`, which makes an environment with the other libraries and writes docs/benchmarks.md,
.json and .png. A part of it, with any environment: `python -m benchmarks --only spade --shapes 128,512,2048,16`.

Every contender runs in a process of its own. Its steps alternate with the bare dense product, so that both see the same
machine. On a GPU (`--device cuda`) products run in bfloat16, at one large shape.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.measure import ENTRIES, Job, as_json
from benchmarks.problem import Shape
from benchmarks.report import Row, describe_machine, write, write_markdown

_ROOT = Path(__file__).parents[1]
_SHAPES = {
    "cpu": ["768,12288,1024,32", "128,512,2048,16"],
    "cuda": ["4096,65536,8192,64"],
    "quick": ["8,32,64,4"],
}
_WIDTHS = [2**i for i in range(10, 18)]
_LOADING_STEPS = 1000
_SWEEP = (256, 512, 32)  # d_in, batch and k, such that every width fits into a few gigabytes


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="WORD", help="parts of library/architecture, loading or harvest"
    )
    parser.add_argument("--shapes", nargs="*", metavar="D_IN,D_SAE,BATCH,K", help="sizes of a step")
    parser.add_argument("--widths", nargs="*", type=int, help="values of d_sae for the sweep; none without a value")
    parser.add_argument("--repeats", type=int, default=51, help="timed pairs of step and product at most")
    parser.add_argument(
        "--seconds", type=float, default=6.0, help="budget of a contender's pairs, a third in the sweep"
    )
    parser.add_argument(
        "--patience", type=float, default=40.0, help="seconds of a width beyond which the sweep leaves it out"
    )
    parser.add_argument("--memory", type=float, default=0.6, help="share of free memory that a step may need")
    parser.add_argument("--threads", type=int, help="CPU threads; torch's choice if left out")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run")
    parser.add_argument("--quick", action="store_true", help="a small shape, to see that all of it works")
    parser.add_argument("--output", type=Path, help="folder for benchmarks.md, .json and .png; printed if left out")
    args = parser.parse_args(arguments)
    if args.quick:
        args.repeats = 3
    if args.shapes is None:
        args.shapes = _SHAPES["quick" if args.quick else args.device]
    if args.widths is None:
        args.widths = [32, 64] if args.quick else _WIDTHS if args.device == "cpu" else []
    return args


def free_memory(device: str) -> float:
    """Bytes that are free where steps run."""
    if device == "cuda":
        import torch

        return float(torch.cuda.mem_get_info()[0])
    return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))


def run_job(job: Job) -> tuple[list[Row], str | None]:
    """Measure in a new process; its results, and what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        request, results = Path(folder, "job.json"), Path(folder, "results.jsonl")
        request.write_text(as_json(job))
        command = [sys.executable, "-m", "benchmarks.measure", str(request), str(results)]
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
        rows = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if done.returncode == 0:
        return rows, None
    # the message of an exception stands at the start of a line, after a traceback
    errors = [line for line in done.stderr.splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt)\b", line)]
    message = errors[-1] if errors else done.stderr.strip()[-200:]
    return rows, f"{job.name} failed with exit status {done.returncode}: {message}"


def outcome(rows: list[Row]) -> str:
    """A job's results in a line."""
    numbers = []
    for row in rows:
        if row["kind"] == "harvest":
            numbers.append(f"{row['ratio'][1]:.2f} times the forward pass")
        elif row["kind"] == "loading":
            numbers.append(f"{row['data']} {row['share']:.1%}")
        else:
            numbers.append("left out" if "left_out" in row else f"{1e3 * row['step'][1]:,.1f} ms")
    return ", ".join(numbers)


def main(arguments: list[str] | None = None) -> int:
    """Measure everything that was asked for; 1 where something failed."""
    args = parse_arguments(arguments)
    wanted = [n for n in [*ENTRIES, "loading", "harvest"] if not args.only or any(word in n for word in args.only)]
    shapes = [Shape(*map(int, s.split(","))) for s in args.shapes]
    d_in, batch, k = shapes[0][0::2] + shapes[0][3:] if args.quick else _SWEEP
    widths = [Shape(d_in, width, batch, k) for width in sorted(args.widths)]
    common = {
        "repeats": args.repeats,
        "budget": args.seconds,
        "patience": args.patience,
        "memory": args.memory * free_memory(args.device),
        "threads": args.threads,
        "device": args.device,
    }
    results: dict[str, list[Any]] = {"steps": [], "sweep": [], "loading": [], "harvest": [], "problems": []}
    start = time.perf_counter()

    for name in wanted:
        if name in ("loading", "harvest"):
            if args.device == "cuda":
                continue
            job = Job(name, [], [], **{**common, "repeats": args.repeats if args.quick else _LOADING_STEPS})
        else:
            entry = ENTRIES[name]
            if not entry.installed:
                results["problems"].append(f"{name} was left out, for {entry.module} is not installed: make bench")
                print(results["problems"][-1])
                continue
            job = Job(name, shapes, widths if entry.in_sweep else [], **common)
        rows, problem = run_job(job)
        for row in rows:
            results[row["kind"]].append(row)
        print(f"{time.perf_counter() - start:5.0f} s  {name}: {outcome(rows)}", flush=True)
        if problem is not None:
            results["problems"].append(problem)
            print(problem)

    measured = [row for kind in ("steps", "sweep", "loading", "harvest") for row in results[kind]]
    if not measured:
        print("nothing was measured")
        return 1
    machine = describe_machine(args.device, measured[0]["torch"], measured[0]["threads"])
    report = {"machine": machine, "seconds": time.perf_counter() - start, **results}
    if args.output is None:
        print("\n" + write_markdown(report))
    else:
        write(report, args.output)
    failures = [p for p in results["problems"] if "failed" in p]
    print(f"{len(measured)} measurements in {time.perf_counter() - start:.0f} s, {len(failures)} failures")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
