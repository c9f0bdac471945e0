"""Measures steps of a TopK SAE, fits the cost model's constants to some of them, and checks it on the others.

    python -m benchmarks.scale --measure   # writes docs/scale.json
    python -m benchmarks.scale             # writes the tables of docs/scale.md from it

Steps run on one thread and are timed by the processor time of the process, which other processes on the machine disturb
little.
"""

import argparse
import json
import re
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.cost_model import (
    FEATURES,
    H100,
    STRATEGIES,
    cache_bytes,
    cpu_seconds,
    exchanged,
    features,
    harvest_gpu_hours,
    memory,
    plan,
    predict,
)
from benchmarks.exchange import measure_exchange
from benchmarks.ours import Ours
from benchmarks.problem import Problem, Shape, draw_activations
from benchmarks.report import describe_machine

DOCS = Path(__file__).parents[1] / "docs"
FIT = [
    *(Shape(256, n, 512, 32) for n in (2048, 8192, 32768)),
    *(Shape(d, 8192, 512, 32) for d in (128, 512, 1024)),
    *(Shape(256, 8192, b, 32) for b in (128, 2048)),
    *(Shape(512, 4096, 1024, k) for k in (8, 128)),
]
CHECK = [
    Shape(256, 16384, 512, 32),
    Shape(768, 4096, 1024, 64),
    Shape(384, 6144, 256, 16),
    Shape(512, 16384, 256, 64),
    Shape(128, 4096, 4096, 16),
    Shape(768, 12288, 1024, 32),
]
EXCHANGE = [Shape(256, 16384, 512, 32), Shape(256, 4096, 512, 32), Shape(768, 12288, 512, 32)]
LARGE, SMALL = Shape(4096, 131072, 8192, 64), Shape(768, 12288, 8192, 32)
TOKENS, CHUNK, PRICE = 10e9, 1024, 2.5
_REPEATS = 9


def measure(shape: Shape, half: bool = False) -> float:
    """Median processor time of a step."""
    torch.manual_seed(0)
    x = draw_activations(2 * shape.batch + 1024, shape.d_in, torch.Generator().manual_seed(0))
    problem = Problem(shape, x[:1024], list(x[1024:].split(shape.batch)))
    contender = Ours("topk", replace(problem, autocast=torch.bfloat16) if half else problem)
    times = []
    for i in range(_REPEATS + 3):
        start = time.process_time()
        contender.step(problem.batches[i % 2])
        times.append(time.process_time() - start)
    return statistics.median(times[3:])


def fit(points: list[tuple[Shape, float]]) -> list[float]:
    """Nonnegative constants that minimize the squared relative errors."""
    import numpy as np
    from scipy.optimize import nnls

    rows = np.array([features(shape) for shape, _ in points]) / np.array([[seconds] for _, seconds in points])
    largest = rows.max(0)
    return (nnls(rows / largest, np.ones(len(rows)))[0] / largest).tolist()


def measure_all() -> dict[str, Any]:
    """All points, in single and half precision, with the constants of the former."""
    torch.set_num_threads(1)
    points = {"fit": FIT, "check": CHECK}
    found = {key: [[list(s), measure(s)] for s in shapes] for key, shapes in points.items()}
    half = [[list(s), measure(s, half=True)] for s in CHECK]
    constants = fit([(Shape(*s), seconds) for s, seconds in found["fit"]])
    machine = describe_machine("cpu", torch.__version__, 1)
    exchange = measure_exchange(EXCHANGE)
    return {"machine": machine, **found, "half": half, "constants": constants, "exchange": exchange}


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


def constants_table(data: dict[str, Any]) -> str:
    """What each feature costs on the CPU."""
    of = {
        "product": "2 B d_in d_sae",
        "pre-codes": "B d_sae",
        "sparse": "B k d_in",
        "weights": "2 d_in d_sae",
        "fixed": "1",
    }
    rows = [[key, f"`{of[key]}`", f"{1e9 * c:.3g}"] for key, c in zip(FEATURES, data["constants"], strict=True)]
    return _table(["part", "grows with", "ns per unit"], rows)


def errors(data: dict[str, Any], points: str) -> list[float]:
    """Relative errors of predicted steps."""
    return [cpu_seconds(Shape(*s), data["constants"]) / seconds - 1 for s, seconds in data[points]]


def check_table(data: dict[str, Any]) -> str:
    """Points that were not fitted, and what is predicted for them."""
    rows = []
    for (s, seconds), (_, half), error in zip(data["check"], data["half"], errors(data, "check"), strict=True):
        shape = Shape(*s)
        predicted = cpu_seconds(shape, data["constants"])
        rows.append([str(shape), f"{1e3 * seconds:.1f}", f"{1e3 * predicted:.1f}", f"{error:+.0%}"])
        rows[-1].append(f"{1e3 * half:.1f}")
    header = ["(d_in, d_sae, batch, k)", "measured, ms", "predicted, ms", "error", "bf16, measured, ms"]
    mean = {key: statistics.mean(abs(e) for e in errors(data, key)) for key in ("fit", "check")}
    largest = max(abs(e) for e in errors(data, "check"))
    text = f"Mean error {mean['check']:.0%}, largest {largest:.0%}; on the {len(data['fit'])} fitted points"
    return f"{_table(header, rows)}\n\n{text} {mean['fit']:.0%}."


def exchange_table(data: dict[str, Any]) -> str:
    """Measured all-reduces of two processes, and what the first one's rate says of the others."""
    sent = [sum(exchanged(Shape(*s), plan("ddp", 2))) for s, _, _ in data["exchange"]]
    rate = data["exchange"][0][2] / sent[0]
    rows = []
    for (s, step, seconds), n in zip(data["exchange"], sent, strict=True):
        rows.append([str(Shape(*s)), f"{1e3 * step:.0f}", f"{n / 1e6:.0f}", f"{1e3 * seconds:.1f}"])
        rows[-1] += [f"{1e3 * n * rate:.1f}", f"{n * rate / seconds - 1:+.0%}"]
    header = ["(d_in, d_sae, batch, k)", "step, ms", "sent, MB", "all-reduce, ms", "predicted, ms", "error"]
    return _table(header, rows)


def memory_rows(benchmarks: dict[str, Any]) -> list[tuple[Shape, int, int]]:
    """Shapes of docs/benchmarks.json, with the bytes that a TopK step took and those that the model says."""
    rows = benchmarks["steps"] + benchmarks["sweep"]
    ours = [r for r in rows if r["library"] == "sae_lightning" and r["architecture"] == "topk"]
    large = [(Shape(*r["shape"]), r["memory"]) for r in ours if r["shape"][0] * r["shape"][1] >= 2**22]
    return [(shape, measured, memory(shape).step) for shape, measured in large]


def memory_table() -> str:
    """Measured and counted memory of a step."""
    rows = [
        [str(s), f"{measured / 2**20:,.0f}", f"{counted / 2**20:,.0f}", f"{counted / measured - 1:+.0%}"]
        for s, measured, counted in memory_rows(json.loads((DOCS / "benchmarks.json").read_text()))
    ]
    return _table(["(d_in, d_sae, batch, k)", "measured, MiB", "counted, MiB", "error"], rows)


def overhead_table() -> str:
    """What a run of `fit` adds to a bare loop."""
    report = json.loads((DOCS / "overhead.json").read_text())
    rows = []
    for row in report["rows"]:
        for clock, label in (("wall", row["architecture"]), ("cpu", "")):
            found = row[clock]
            low, median, high = found["ratio"]
            cells = [label, clock, f"{1e3 * found['bare'][1]:.0f}", f"{median:.3f} ({low:.3f} to {high:.3f})"]
            cells += [f"{1e3 * found['added']['logged']:.0f} ms"]
            cells += [f"{found['added'][event]:.1f} s" for event in ("saved", "validated")]
            rows.append([*cells, f"{found['overhead']:.1%}"])
    header = ["SAE", "clock", "bare step, ms", "step, ratio", "a logged step", "a checkpoint", "a validation", "in all"]
    return _table(header, rows)


def prediction_table(shape: Shape, gpus: tuple[int, ...]) -> str:
    """Strategies on several numbers of GPUs."""
    rows = []
    for n in gpus:
        for name in STRATEGIES if n > 1 else ("ddp",):
            of = plan(name, n)
            p = predict(shape, of, TOKENS, CHUNK)
            label = f"{name}, {of.groups} x {of.shards}" if name == "sharded" else name if n > 1 else "one GPU"
            steps = TOKENS / (shape.batch * of.groups)
            rows.append([str(n), label, *(f"{1e3 * part:.1f}" for part in p.step), f"{p.samples_per_second / 1e6:.2f}"])
            rows[-1] += [f"{p.memory.total / 1e9:.1f}", f"{p.read_per_gpu / 1e9:.2f}", f"{steps:,.0f}"]
            rows[-1] += [f"{p.hours:.2f}", f"{p.gpu_hours:,.0f}", f"{PRICE * p.gpu_hours:,.0f}"]
    header = ["GPUs", "strategy", "product, ms", "memory, ms", "exchange, ms", "million samples/s", "GB per GPU"]
    return _table([*header, "reads, GB/s", "steps", "hours", "GPU hours", "$"], rows)


def data_table() -> str:
    """Storage and harvest."""
    rows = [
        [str(d), name, f"{cache_bytes(TOKENS, d) / 1e12:.1f}", f"{harvest_gpu_hours(TOKENS, n):,.0f}"]
        for d, name, n in ((768, "160 million", 160e6), (4096, "7 billion", 7e9), (8192, "70 billion", 70e9))
    ]
    return _table(["d_in", "host's parameters", "cache of one layer, TB", "harvest, GPU hours"], rows)


def write_tables(page: Path, data: dict[str, Any]) -> None:
    """Put every table between its marks, `<!-- table NAME -->` and `<!-- end -->`.

    Raises:
        ValueError: If the page lacks marks.
    """
    tables = {
        "constants": constants_table(data),
        "check": check_table(data),
        "memory": memory_table(),
        "exchange": exchange_table(data),
        "overhead": overhead_table(),
        "large": prediction_table(LARGE, (1, 8, 512)),
        "small": prediction_table(SMALL, (1, 8)),
        "data": data_table(),
    }
    text = page.read_text()
    for name, table in tables.items():
        marks = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marks.search(text):
            raise ValueError(f"{page} must hold <!-- table {name} --> and <!-- end -->")
        text = marks.sub(lambda m, table=table: f"{m[1]}{table}\n{m[2]}", text)
    page.write_text(text)


def main(arguments: list[str] | None = None) -> None:
    """Measure, or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure anew (about two minutes)")
    args = parser.parse_args(arguments)
    if args.measure:
        (DOCS / "scale.json").write_text(json.dumps(measure_all(), indent=1) + "\n")
    data = json.loads((DOCS / "scale.json").read_text())
    write_tables(DOCS / "scale.md", data)
    print(f"errors of predicted steps: {[f'{e:+.0%}' for e in errors(data, 'check')]}; {H100.name} predictions written")


if __name__ == "__main__":
    main()
