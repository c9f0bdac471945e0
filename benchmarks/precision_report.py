"""The tables of docs/precision.md, from what benchmarks/precision.py has measured."""

import statistics
from typing import Any

MARK = "<!-- what follows is written by python -m benchmarks.precision -->"
MEMBERS = ("spade", "relu", "jumprelu", "topk")
BARS = {"f1": 0.02, "monosemanticity": 0.02, "l0": 0.05, "nmse": 0.10}
_RELATIVE = ("l0", "nmse")  # metrics whose differences are shares of their value
_COMPARED = ("bf16-mixed", "nudged", "shaken", "bf16-true")

_LEGEND = """\
Each experiment's `compare.yaml`, shortened; held-out samples. "Over seeds" is the largest minus the smallest value in
32-true. The other columns hold the mean difference from 32-true at the same seed and, in parentheses, the largest;
those of L0 and NMSE are shares of the value in 32-true. The bar is 0.02 for F1 (mean of a concept's five best latents)
and monosemanticity, 5 % for L0 and 10 % for NMSE."""


def differences(ways: dict[str, Any], way: str, metric: str) -> list[float]:
    """How much a metric of one SAE differs from that of 32-true, seed by seed; L0 and NMSE as a share of it."""
    found = []
    for seed, values in sorted(ways.get(way, {}).items()):
        if seed in ways["32-true"]:
            exact = ways["32-true"][seed][metric]
            difference = values[metric] - exact
            found.append(difference / exact if metric in _RELATIVE else difference)
    return found


def _signed(value: float, metric: str) -> str:
    return f"{value:+.1%}" if metric in _RELATIVE else f"{value:+.3f}"


def _cell(found: list[float], metric: str) -> str:
    """The mean over seeds, and the largest in parentheses."""
    if not found:
        return ""
    return f"{_signed(statistics.mean(found), metric)} ({_signed(max(found, key=abs), metric)})"


def _metrics_table(members: dict[str, Any]) -> list[str]:
    lines = [
        f"| SAE | metric | 32-true | over seeds | {' | '.join(_COMPARED)} | bf16-mixed within the bar |",
        "|---" * (5 + len(_COMPARED)) + "|",
    ]
    for name in MEMBERS:
        ways = members.get(name, {})
        if "32-true" not in ways:
            continue
        for metric, bar in BARS.items():
            exact = [values[metric] for values in ways["32-true"].values()]
            mean, width = statistics.mean(exact), max(exact) - min(exact)
            spread = f"{width / mean:.1%}" if metric in _RELATIVE else f"{width:.3f}"
            compared = [differences(ways, way, metric) for way in _COMPARED]
            within = sum(abs(d) <= bar for d in compared[0])
            cells = " | ".join(_cell(found, metric) for found in compared)
            lines.append(
                f"| {name} | {metric} | {mean:.3g} | {spread} | {cells} | {within} of {len(compared[0])} seeds |"
            )
    return lines


def _summary(experiments: dict[str, Any]) -> list[str]:
    """How many of an experiment's values (SAEs, metrics and seeds) lie within the bar."""
    lines = ["| experiment | " + " | ".join(_COMPARED) + " |", "|---" * (1 + len(_COMPARED)) + "|"]
    for experiment, found in experiments.items():
        if not found["metrics"]:
            continue
        cells = []
        for way in _COMPARED:
            each = [
                abs(difference) <= bar
                for ways in found["metrics"].values()
                for metric, bar in BARS.items()
                for difference in differences(ways, way, metric)
            ]
            cells.append(f"{sum(each)} of {len(each)}" if each else "")
        lines.append(f"| {experiment} | {' | '.join(cells)} |")
    return lines


def _times_table(experiments: dict[str, Any]) -> list[str]:
    lines = ["| experiment | SAE | 32-true, ms | bf16-mixed, ms | bf16-mixed : 32-true |", "|---|---|---|---|---|"]
    for experiment, found in experiments.items():
        for name in MEMBERS:
            if name in found["seconds_per_step"]:
                times = found["seconds_per_step"][name]
                exact, half = (f"{1e3 * times[way]:.1f}" for way in ("32-true", "bf16-mixed"))
                lines.append(f"| {experiment} | {name} | {exact} | {half} | {times['ratio']:.2f} |")
    return lines


def write_tables(results: dict[str, Any]) -> str:
    """All tables, as Markdown."""
    lines = ["### Metrics", ""]
    lines += [_LEGEND, "", "Values within the bar:", "", *_summary(results["experiments"]), ""]
    for experiment, found in results["experiments"].items():
        if found["metrics"]:
            seeds = max(len(ways["32-true"]) for ways in found["metrics"].values())
            lines += [
                f"**{experiment}**, {found['steps']} steps, {seeds} seeds",
                "",
                *_metrics_table(found["metrics"]),
                "",
            ]
    lines += ["### Times", "", *_times_table(results["experiments"]), ""]
    return "\n".join(lines)
