"""The cost model counts what the package allocates and sends, and the page's tables are those of its numbers."""

import json
import shutil

import pytest
import torch

from benchmarks import scale
from benchmarks.cost_model import STRATEGIES, exchanged, main, memory, plan
from benchmarks.overhead import LOG_EVERY, SAVE_EVERY, VALIDATE_EVERY, summarize
from benchmarks.problem import Shape
from sae_lightning.modules import TopKSAE
from tests.helpers.runs import ROOT

SHAPE = Shape(d_in=64, d_sae=512, batch=128, k=8)
DATA = json.loads((ROOT / "docs" / "scale.json").read_text())


def test_weights_moments_and_gradients_are_those_of_an_sae() -> None:
    sae = TopKSAE(SHAPE.d_in, SHAPE.d_sae, k=SHAPE.k)
    optimizer, _ = sae.make_optimizer()
    x = torch.randn(SHAPE.batch, SHAPE.d_in)
    sae.initialize(x)
    sae.learn(x).terms["loss"].backward()
    optimizer.step()
    counted = memory(SHAPE)
    matrices = [p for p in sae.parameters() if p.ndim == 2]
    assert counted.weights == sum(p.nbytes for p in matrices)
    assert counted.gradients == sum(p.grad.nbytes for p in matrices)
    assert counted.moments == sum(optimizer.state[p][key].nbytes for p in matrices for key in ("exp_avg", "exp_avg_sq"))
    assert counted.pre_codes == sae(x).pre_codes.nbytes


def test_counted_memory_is_what_the_benchmark_measured() -> None:
    found = scale.memory_rows(json.loads((ROOT / "docs" / "benchmarks.json").read_text()))
    assert len(found) >= 4
    for shape, measured, counted in found:
        assert counted == pytest.approx(measured, rel=0.15), shape


def test_shares_add_up_and_one_gpu_sends_nothing() -> None:
    whole = memory(SHAPE)
    assert memory(SHAPE, plan("sharded", 8)).total * 8 == whole.total
    assert memory(SHAPE, plan("fsdp", 8)).moments * 8 == whole.moments
    for name in STRATEGIES:
        assert sum(exchanged(SHAPE, plan(name, 1))) == 0
    assert exchanged(SHAPE, plan("ddp", 2)) == (0, 8 * SHAPE.d_in * SHAPE.d_sae)
    with pytest.raises(ValueError, match="multiple of the 8"):
        plan("sharded", 12)


def test_points_of_the_check_were_not_fitted_and_are_predicted() -> None:
    fitted, checked = ({tuple(shape) for shape, _ in DATA[key]} for key in ("fit", "check"))
    assert not fitted & checked
    points = [(Shape(*shape), seconds) for shape, seconds in DATA["fit"]]
    assert scale.fit(points) == pytest.approx(DATA["constants"], rel=1e-6)
    assert max(abs(error) for error in scale.errors(DATA, "check")) < 0.25


def test_the_page_holds_the_tables_of_its_numbers(tmp_path) -> None:
    page = ROOT / "docs" / "scale.md"
    shutil.copy(page, tmp_path / "scale.md")
    scale.write_tables(tmp_path / "scale.md", DATA)
    assert (tmp_path / "scale.md").read_text() == page.read_text()


def test_the_command_predicts(capsys) -> None:
    main(["--gpus", "8"])
    out = capsys.readouterr().out
    assert "never run" in out
    assert all(name in out for name in STRATEGIES)


def test_overheads_are_weighed_by_their_cadence() -> None:
    def row(fit: float, *events: str) -> dict:
        return {
            "fit": {"wall": fit},
            "bare": {"wall": 1.0},
            **{e: e in events for e in ("logged", "saved", "validated")},
        }

    rows = [row(1.02)] * 20 + [row(1.52, "logged"), row(2.02, "saved"), row(5.52, "logged", "validated")]
    found = summarize(rows, "wall")
    expected = {"step": 0.02, "logged": 0.5 / LOG_EVERY, "saved": 1 / SAVE_EVERY, "validated": 4 / VALIDATE_EVERY}
    assert found["shares"] == pytest.approx(expected)
    assert found["overhead"] == pytest.approx(sum(expected.values()))
