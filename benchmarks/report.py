"""Tables and plots of what was measured."""

import datetime
import json
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.problem import Shape

Row = dict[str, Any]

ARCHITECTURES = {"relu": "ReLU", "jumprelu": "JumpReLU", "topk": "TopK", "topk-auxk": "TopK, aux-k", "spade": "SpaDE"}
_PACKAGES = ("lightning", "sae-lens", "dictionary-learning", "eai-sparsify", "transformers")

_NOTES = """\
A step is forward, backward, clipping and Adam, in fp32, on activations that lie in memory: sparse combinations of
random directions with noise, of mean squared norm `d_in`. *Times the product* compares it with the encoder's product
`x @ W.T` alone, written into memory that is there already and timed in turn with the step; quote these ratios, for
absolute times vary with what else the machine does. *Peak memory* is what a step takes above weights, optimizer state
and data, gradients included. Ranges are quartiles.

Sparsity is the same for all: ReLU's biases and JumpReLU's thresholds are set so that about 1 % of latents fire, TopK
keeps k, SpaDE's lambda is calibrated to k; L0 is what was measured, *silent* the share of latents that
fire nowhere in the two batches. In *TopK* none of these counts as dead; in *TopK, aux-k* all do, and a tenth of the
latents was made silent beforehand, so that the auxiliary loss is at work.

- *sae_lightning*: this package, with its defaults; as in its training loop, the C library keeps freed memory.
- *naive*: the formulas with dense codes, plain autograd and PyTorch's default Adam, SpaDE as in the authors' code, with
  all differences `(batch, d_sae, d_in)` and a sort.
- *sae-lens*: `SAETrainer.step`. *sparse* is its option `use_sparse_activations`, without rescaling by decoder
  norms, whose backward pass fails there.
- *dictionary-learning*: `update` of `StandardTrainer` (which clips nothing), `JumpReluTrainer` and `TopKTrainer`.
- *eai-sparsify*: the lines of `Trainer.fit` for one SAE, with Adam; *signum* is its default optimizer. It clips
  nothing; aux-k is switched off by its defaults.
"""


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def describe_machine(device: str, torch_version: str, threads: int) -> Row:
    """Where and with what the numbers were measured."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    machine = {"cpu": _cpu(), "device": device, "threads": threads, "torch": torch_version}
    return {**machine, "date": datetime.date.today().isoformat(), "versions": versions}


def _range(quartiles: list[float], unit: float = 1.0) -> str:
    low, median, high = (unit * q for q in quartiles)
    digits = 0 if median >= 100 else 1 if median >= 10 else 2
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _mebibytes(memory: int | None) -> str:
    return "not measured" if memory is None else f"{memory / 2**20:,.0f}"


def step_table(rows: list[Row]) -> str:
    """One shape's table."""
    on_gpu = any("fraction_of_peak" in row for row in rows)
    header = ["SAE", "library", "step, ms", "times the product", "samples/s", "peak memory, MiB", "L0", "silent"]
    lines = [header + ["of the matmul peak"] * on_gpu]
    for row in sorted(rows, key=lambda row: list(ARCHITECTURES).index(row["architecture"])):
        cells = [ARCHITECTURES[row["architecture"]], row["library"]]
        if "left_out" in row:
            cells += [row["left_out"]] + [""] * (len(lines[0]) - 3)
        else:
            cells += [_range(row["step"], 1e3), _range(row["ratio"]), f"{row['samples_per_second']:,.0f}"]
            cells += [_mebibytes(row["memory"]), f"{row['l0']:,.1f}", f"{row['silent']:.0%}"]
            cells += [f"{row['fraction_of_peak']:.0%}"] if on_gpu else []
        lines.append(cells)
    return _markdown(lines)


def sweep_table(rows: list[Row]) -> str:
    """Ratios to the product at every width."""
    widths = sorted({row["shape"][1] for row in rows})
    lines = [["SAE", "library", *(f"{w:,}" for w in widths)]]
    left_out = set()
    for architecture, label in ARCHITECTURES.items():
        for library in dict.fromkeys(row["library"] for row in rows if row["architecture"] == architecture):
            cells = dict.fromkeys(widths, "")
            for row in rows:
                if (row["library"], row["architecture"]) != (library, architecture):
                    continue
                if "left_out" in row:
                    cells[row["shape"][1]] = "-"
                    left_out.add(f"{label}, {library}, {row['shape'][1]:,}: {row['left_out']}")
                else:
                    cells[row["shape"][1]] = f"{row['ratio'][1]:.1f} ({1e3 * row['step'][1]:,.0f} ms)"
            lines.append([label, library, *cells.values()])
    return "\n".join([_markdown(lines), *(["", *(f"- {line}" for line in sorted(left_out))] if left_out else [])])


def loading_table(rows: list[Row]) -> str:
    """Shares of the data loader."""
    lines = [["data", "SAE", "batch", "steps", "fetching, ms", "step, ms", "share"]]
    for row in rows:
        fetch, step = 1e3 * row["fetch"], 1e3 * row["step"]
        lines.append([row["data"], row["model"], str(row["batch"]), str(row["steps"]), f"{fetch:.3f}", f"{step:.2f}"])
        lines[-1].append(f"{row['share']:.1%}")
    return _markdown(lines)


def _markdown(lines: list[list[str]]) -> str:
    rule = ["---"] * len(lines[0])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], rule, *lines[1:]])


def spade_against_naive(rows: list[Row]) -> list[str]:
    """How many times faster and smaller SpaDE's step is than its definition, at every shape that has both."""
    steps = {(r["library"], *r["shape"]): r for r in rows if r["architecture"] == "spade" and "step" in r}
    sentences = []
    for (library, *shape), row in steps.items():
        naive = steps.get(("naive", *shape))
        if library != "sae_lightning" or naive is None:
            continue
        faster = naive["step"][1] / row["step"][1]
        memory = f", and takes {row['memory'] / naive['memory']:.3f} of its peak memory" if row["memory"] else ""
        sentences.append(f"At {Shape(*shape)} SpaDE's step is {faster:.1f} times faster than the naive one{memory}.")
    return sentences


def write_markdown(results: Row) -> str:
    """Everything that was measured, as a page."""
    machine = results["machine"]
    versions = ", ".join(f"{k} {v}" for k, v in machine["versions"].items())
    parts = [
        "# Benchmarks",
        f"Made by `make bench` on {machine['date']}: {machine['cpu']}, {machine['device']}, {machine['threads']} CPU "
        f"threads, torch {machine['torch']}, {versions}.",
    ]
    steps, sweep = results["steps"], results["sweep"]
    if steps or sweep:
        parts.append(_NOTES.strip())
    for shape in dict.fromkeys(tuple(row["shape"]) for row in steps):
        parts.append(f"## (d_in, d_sae, batch, k) = {Shape(*shape)}")
        parts.append(step_table([row for row in steps if tuple(row["shape"]) == shape]))
    parts += spade_against_naive(steps)
    if sweep:
        d_in, _, batch, k = sweep[0]["shape"]
        parts.append(f"## Width: d_in {d_in}, batch {batch}, k {k}")
        parts.append("Times the product, and in parentheses the step, at every d_sae.")
        parts.append(sweep_table(sweep))
    if results["loading"]:
        parts.append("## Data loading")
        parts.append("Fetching the next batch in a real `Trainer.fit`, over the training step.")
        parts.append(loading_table(results["loading"]))
    if results.get("harvest"):
        parts.append("## Harvesting")
        parts.append(
            "`sae-lightning harvest` (tokenizing, the pass up to the third of six layers, choosing words, writing) on "
            "a random model of MiniLM's sizes, over that pass alone on the same batches. Quartiles of pairs."
        )
        lines = [["harvest", "times the forward pass", "tokens/s"]]
        lines += [[r["data"], _range(r["ratio"]), f"{r['tokens_per_second']:,.0f}"] for r in results["harvest"]]
        parts.append(_markdown(lines))
    parts += [f"{problem}." for problem in results["problems"]]
    return "\n\n".join(parts) + "\n"


def _bars(ax: Axes, rows: list[Row], colors: dict[str, Any]) -> None:
    """Ratios to the product, grouped by architecture, with quartiles."""
    architectures = [a for a in ARCHITECTURES if any(r["architecture"] == a for r in rows)]
    for i, architecture in enumerate(architectures):
        group = [r for r in rows if r["architecture"] == architecture]
        for j, row in enumerate(group):
            low, median, high = row["ratio"]
            x = i + 0.85 * ((j + 0.5) / len(group) - 0.5)
            ax.bar(x, median, 0.8 / len(group), color=colors[row["library"]])
            ax.errorbar(x, median, [[median - low], [high - median]], color="black", linewidth=0.8)
    ax.set_xticks(range(len(architectures)), [ARCHITECTURES[a] for a in architectures])
    ax.set_yscale("log")
    ax.set_ylim(bottom=1)  # the product itself
    ticks = [t for t in (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000) if t <= ax.get_ylim()[1]]
    ax.set_yticks(ticks, [f"{t:,}" for t in ticks])
    ax.minorticks_off()
    ax.set_ylabel("step, times the dense product")
    ax.set_title(f"(d_in, d_sae, batch, k) = {Shape(*rows[0]['shape'])}", fontsize="medium")


def _lines(ax: Axes, rows: list[Row], architecture: str, colors: dict[str, Any]) -> None:
    """Step times over widths, with the bare product below."""
    rows = [r for r in rows if r["architecture"] == architecture]
    for library in dict.fromkeys(r["library"] for r in rows):
        own = [r for r in rows if r["library"] == library]
        widths = [r["shape"][1] for r in own]
        ax.plot(widths, [1e3 * r["step"][1] for r in own], marker=".", color=colors[library])
    product = {r["shape"][1]: 1e3 * r["product"][1] for r in rows}
    ax.plot(list(product), list(product.values()), color="black", linestyle=":", label="dense product")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xlabel("d_sae")
    ax.set_ylabel("step, ms")
    ax.set_title(ARCHITECTURES[architecture], fontsize="medium")


def draw(results: Row) -> Figure:
    """Bars of ratios for every shape, and lines over widths for every architecture."""
    steps = [r for r in results["steps"] if "step" in r]
    sweep = [r for r in results["sweep"] if "step" in r]
    libraries = list(dict.fromkeys(r["library"] for r in steps + sweep))
    colors = {library: mpl.colormaps["tab10"](i % 10) for i, library in enumerate(libraries)}
    shapes = list(dict.fromkeys(tuple(r["shape"]) for r in steps))
    swept = [a for a in ARCHITECTURES if any(r["architecture"] == a for r in sweep)]
    columns = max(len(swept), 1)
    heights = [1.2] * len(shapes) + [1.0] * bool(swept)
    figure = Figure(figsize=(12, 3 * sum(heights) + 0.6), layout="constrained")
    grid = figure.add_gridspec(len(heights), columns, height_ratios=heights)
    for i, shape in enumerate(shapes):
        _bars(figure.add_subplot(grid[i, :]), [r for r in steps if tuple(r["shape"]) == shape], colors)
    for i, architecture in enumerate(swept):
        _lines(figure.add_subplot(grid[-1, i]), sweep, architecture, colors)
    handles = [mpl.patches.Patch(color=color, label=library) for library, color in colors.items()]
    if swept:
        handles.append(mpl.lines.Line2D([], [], color="black", linestyle=":", label="dense product"))
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False)
    return figure


def write(results: Row, folder: Path) -> None:
    """Write benchmarks.md, benchmarks.json and, where steps were timed, benchmarks.png."""
    folder.mkdir(parents=True, exist_ok=True)
    text = write_markdown(results)
    if any("step" in row for row in results["steps"] + results["sweep"]):
        draw(results).savefig(folder / "benchmarks.png", dpi=120)
        title, rest = text.split("\n\n", 1)
        text = f"{title}\n\n![Steps as multiples of the dense product](benchmarks.png)\n\n{rest}"
    (folder / "benchmarks.md").write_text(text)
    (folder / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
