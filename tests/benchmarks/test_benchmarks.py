import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from benchmarks import naive
from benchmarks.measure import ENTRIES
from benchmarks.ours import make_sae, threshold_of
from benchmarks.problem import Shape, make_problem

ROOT = Path(__file__).parents[2]
SHAPE = Shape(d_in=6, d_sae=40, batch=32, k=5)


@pytest.mark.parametrize("architecture", naive.ARCHITECTURES)
def test_the_naive_step_has_our_loss_and_gradients(architecture: str) -> None:
    problem = make_problem(SHAPE, torch.device("cpu"))
    sae = make_sae(architecture, SHAPE)
    sae.initialize(problem.samples)
    threshold_of(dict(sae.named_parameters()), 0.7)
    if architecture == "jumprelu":
        sae.sae.projection.bandwidth = 0.5  # so wide that thresholds have gradients
    sae.double()
    x = problem.batches[0].double()
    copy = naive.NaiveSAE(architecture, sae, SHAPE.k)

    torch.testing.assert_close(copy.codes(x), sae.encode(x), rtol=1e-9, atol=1e-9)
    loss, expected = sae.learn(x).terms["loss"], copy.loss(x)
    torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
    loss.backward()
    expected.backward()
    for name, parameter in sae.named_parameters():
        reference = copy.parameters[name].grad
        assert reference.abs().max() > 0, name
        torch.testing.assert_close(parameter.grad, reference, rtol=1e-8, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e.module == "sae_lightning"])
def test_contenders_step_at_the_sparsity_that_they_should_have(name: str) -> None:
    problem = make_problem(Shape(d_in=16, d_sae=400, batch=128, k=8), torch.device("cpu"))
    torch.manual_seed(0)
    contender = ENTRIES[name].build(problem)
    contender.calibrate(problem.batches[0])
    for x in problem.batches:
        contender.step(x)
    l0, silent = contender.sparsity(problem.batches)
    assert l0 == pytest.approx(4 if "relu" in name else 8, rel=0.3)
    if "auxk" in name:
        assert silent >= 0.1


@pytest.mark.slow
def test_a_quick_run_writes_table_numbers_and_plot(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", "--quick", "--threads", "1", "--output", str(tmp_path)]
    done = subprocess.run(
        [*command, "--only", "spade", "sae-lens/topk", "loading", "harvest"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "benchmarks.json").read_text())
    assert {row["library"] for row in results["steps"]} >= {"sae_lightning", "naive"}
    assert all(low <= median <= high for row in results["sweep"] for low, median, high in [row["ratio"]])
    assert {row["data"] for row in results["loading"]} == {
        "SeparabilityDataModule",
        "HeterogeneityDataModule",
        "CachedDataModule",
    }
    assert results["harvest"][0]["ratio"][1] > 1
    page = (tmp_path / "benchmarks.md").read_text()
    assert "SpaDE's step is" in page
    assert ("sae_lens is not installed: make bench" in page) == (find_spec("sae_lens") is None)
    assert (tmp_path / "benchmarks.png").stat().st_size > 0


@pytest.mark.slow
def test_a_step_that_needs_too_much_memory_is_left_out() -> None:
    command = [sys.executable, "-m", "benchmarks", "--only", "naive/spade", "--shapes", "768,1000000,1024,32"]
    done = subprocess.run([*command, "--widths"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "left out: would need" in done.stdout
