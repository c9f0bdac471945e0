"""The stored results of the paper's experiments against the paper's own bars, with every bar that is not met.

Nothing is trained here (tests/test_reproduction.py does that, for one seed): these are the files from which notebooks
and README are made. A bar that comes to be met, or is no longer, changes this list.
"""

import json

import pytest

from tests.helpers.runs import ROOT

RESULTS = ROOT / "notebooks" / "results"
OUTER, INNER = ("C0", "C2", "C4"), ("C1", "C3", "C5")
DIMS = (6, 14, 30, 62, 126)


def points(path):
    """Test metrics of every SAE of a sweep, by name."""
    stored = json.loads((RESULTS / path).read_text())
    found = {}
    for name in stored["model"]["init_args"]["members"]:
        prefix = f"{name}/test/"
        metrics = stored["test"]["metrics"].items()
        found[name] = {key.removeprefix(prefix): value for key, value in metrics if key.startswith(prefix)}
    return found


def of(family, found):
    return {name: m for name, m in found.items() if name.partition("-")[0] == family}


def f1(metrics, concepts):
    return [metrics[f"f1/{concept}"] for concept in concepts]


def missed(seed):
    """The paper's bars of the separability figure that are not met, each with its worst number."""
    found, worst = points(f"separability/seed{seed}.json"), {}

    def hold(bar, values, low=-1e9, high=1e9):
        bad = [value for value in values if not low <= value <= high]
        if bad:
            worst[bar] = round(max(bad, key=lambda value: max(low - value, value - high)), 3)

    at_l0 = [m for m in of("spade", found).values() if 13 <= m["l0"] <= 15]
    assert len(at_l0) >= 3
    hold("SpaDE, L0 13 to 15: F1 nearly 1 on outer concepts", [min(f1(m, OUTER)) for m in at_l0], low=0.97)
    hold("SpaDE, L0 13 to 15: F1 nearly 1 on inner concepts", [min(f1(m, INNER)) for m in at_l0], low=0.95)
    hold("SpaDE, L0 13 to 15: stable rank 6.5 to 7", [m["stable_rank_codes"] for m in at_l0], 6.5, 7)
    hold("SpaDE: dead below 10 %", [m["dead_latents"] for m in of("spade", found).values()], high=0.1)
    for family in ("relu", "jumprelu"):
        sweep = of(family, found).values()
        hold(f"{family}: reaches 1 on outer concepts", [max(max(f1(m, OUTER)) for m in sweep)], low=0.99)
        hold(f"{family}: at most .55 on inner concepts", [max(f1(m, INNER)) for m in sweep], high=0.55)
    hold("topk: below .8 on outer concepts", [max(f1(m, OUTER)) for m in of("topk", found).values()], high=0.8)
    hold("topk: below .6 on inner concepts", [max(f1(m, INNER)) for m in of("topk", found).values()], high=0.6)
    for family in ("relu", "jumprelu", "topk"):
        sweep = of(family, found).values()
        hold(f"{family}: stable rank 1.5 to 3.5", [m["stable_rank_codes"] for m in sweep], 1.5, 3.5)
        hold(f"{family}: dead 45 to 97 %", [m["dead_latents"] for m in sweep], 0.45, 0.97)
    return worst


NOT_MET = {
    0: {"jumprelu: stable rank 1.5 to 3.5": 1.493},
    1: {
        "SpaDE, L0 13 to 15: F1 nearly 1 on inner concepts": 0.935,
        "SpaDE: dead below 10 %": 0.117,
        "topk: below .8 on outer concepts": 0.821,
        "jumprelu: stable rank 1.5 to 3.5": 1.43,
    },
    2: {
        "SpaDE, L0 13 to 15: stable rank 6.5 to 7": 6.493,
        "topk: below .8 on outer concepts": 0.873,
        "relu: at most .55 on inner concepts": 0.602,
    },
}


@pytest.mark.parametrize("seed", NOT_MET)
def test_separability_meets_the_paper_s_bars_but_for_these(seed):
    assert missed(seed) == NOT_MET[seed]


def test_heterogeneity_meets_the_paper_s_bars_but_for_these():
    """In full length, seed 0: L0 of 126 dimensions over that of 6 is to be 9 to 12 for gamma .1 to 5."""
    found = points("heterogeneity/figure.json")
    ratios = {name: round(m["l0/d126"] / m["l0/d6"], 2) for name, m in found.items()}
    spade = {name: ratios[name] for name in ("spade-1e-1", "spade-1e0", "spade-3e0", "spade-5e0")}
    outside = {name: ratio for name, ratio in spade.items() if not 9 <= ratio <= 12}
    assert outside == {"spade-1e-1": 8.83, "spade-3e0": 12.98}
    # for gamma 1, by dimension: 6.1, 12.2, 29.3, 61.1, 71.2
    l0 = [found["spade-1e0"][f"l0/d{d}"] for d in DIMS]
    assert l0 == pytest.approx([6.1, 12.2, 29.3, 61.1, 71.2], rel=0.03)
    assert max(ratio for name, ratio in ratios.items() if name.startswith("relu")) <= 4.5
    assert max(ratio for name, ratio in ratios.items() if name.startswith("jumprelu")) <= 5.3
    for name, m in of("topk", found).items():
        k = int(name.removeprefix("topk-"))
        assert all(m[f"nmse/d{d}"] >= 0.2 or k > d for d in DIMS), name
    for d, k in zip(DIMS, (8, 16, 32, 64, 128), strict=True):
        assert found[f"topk-{k:03d}"][f"nmse/d{d}"] < 0.2
