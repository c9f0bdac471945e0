"""The paper's separability figure, trained whole: what each architecture finds and hides.

About six minutes on one core. The bars are the paper's claims; the notebook holds the values point by point.
"""

import json
from typing import NamedTuple

import pytest

from tests.conftest import CONFIGS, QUIET, run_cli

OUTER, INNER = ("C0", "C2", "C4"), ("C1", "C3", "C5")

pytestmark = pytest.mark.reproduction


class Point(NamedTuple):
    """What was measured of one SAE of the sweep."""

    metrics: dict[str, float]

    def worst(self, concepts):
        return min(self.metrics[f"f1/{concept}"] for concept in concepts)

    def best(self, concepts):
        return max(self.metrics[f"f1/{concept}"] for concept in concepts)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """The 40 SAEs by family."""
    run_dir = tmp_path_factory.mktemp("figure") / "run"
    args = ["-c", CONFIGS / "separability" / "figure.yaml", *QUIET, "--run_dir", run_dir]
    assert run_cli("fit", *args).code == 0
    assert run_cli("test", *args, "--ckpt_path", run_dir / "checkpoints" / "last.ckpt").code == 0
    results = json.loads((run_dir / "results.json").read_text())
    families = {}
    for name, member in results["model"]["init_args"]["members"].items():
        prefix = f"{name}/test/"
        metrics = {k.removeprefix(prefix): v for k, v in results["test"]["metrics"].items() if k.startswith(prefix)}
        families.setdefault(member["class_path"].rpartition(".")[2], []).append(Point(metrics))
    assert {family: len(points) for family, points in families.items()} == dict.fromkeys(
        ("SpaDE", "ReLUSAE", "JumpReLUSAE", "TopKSAE"), 10
    )
    return families


def test_spade_finds_all_concepts_at_the_paper_s_sparsity(sweep):
    window = [point for point in sweep["SpaDE"] if 13 <= point.metrics["l0"] <= 15]
    assert len(window) >= 3
    for point in window:
        assert point.worst(OUTER) >= 0.97
        assert point.worst(INNER) >= 0.95
        assert 6 <= point.metrics["stable_rank_codes"] <= 8
        assert point.metrics["dead_latents"] <= 0.1


@pytest.mark.parametrize("family", ["ReLUSAE", "JumpReLUSAE"])
def test_half_spaces_find_the_outer_concepts_only(sweep, family):
    assert max(point.best(OUTER) for point in sweep[family]) >= 0.95
    assert max(point.best(INNER) for point in sweep[family]) < 0.65


def test_cones_hide_the_inner_concepts(sweep):
    assert max(point.best(INNER) for point in sweep["TopKSAE"]) < 0.70


def test_rivals_leave_most_latents_dead(sweep):
    for family in ("ReLUSAE", "JumpReLUSAE", "TopKSAE"):
        assert min(point.metrics["dead_latents"] for point in sweep[family]) > 0.3
