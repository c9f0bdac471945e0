"""What the report says is what codes and bounds say by themselves."""

import json
from functools import partial

import pytest
import torch

from sae_lightning import Comparison, ReLUSAE, SpaDE, TopKSAE
from sae_lightning.callbacks import ConceptRecovery, LatentMeaning, ReportPage, VisibilityReport
from sae_lightning.callbacks.visibility import alone
from sae_lightning.geometry import bounds
from sae_lightning.metrics.functional import concept_f1, latent_overlap
from tests.helpers.contexts import make_data, make_sae, run
from tests.helpers.pages import Page

MEMBERS = {"spade": partial(SpaDE, d_sae=12), "relu": partial(ReLUSAE, d_sae=9), "topk": partial(TopKSAE, d_sae=8, k=2)}


@pytest.fixture(scope="module")
def tested(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    module, data, report = Comparison(4, MEMBERS), make_data(files), VisibilityReport(min_jaccard=0.7)
    trainer = run(module, data, folder, ConceptRecovery(), LatentMeaning(), report, ReportPage())
    split = data.split("test")
    with torch.no_grad():
        codes = {name: sae.eval().encode(split.activations) for name, sae in module.saes().items()}
    return folder, module, data, report, trainer, codes, split.concepts


def test_pairs_are_those_of_the_whole_split(tested):
    folder, _, _, report, trainer, codes, _ = tested
    written = json.loads((folder / "visibility.json").read_text())
    assert len(written["pairs"]) == len(report.results.overlaps) == 6
    for pair in written["pairs"]:
        name, other = pair["sae"], pair["other"]
        expected = latent_overlap(codes[name], codes[other], 0.7)
        torch.testing.assert_close(report.results.overlaps[name, other].best, expected.best, equal_nan=True)
        assert pair["alone"] == pytest.approx(float(expected.alone), abs=1e-5)
        assert float(trainer.callback_metrics[f"{name}/test/alone/{other}"]) == pytest.approx(float(expected.alone))
        live = [i for i, best in enumerate(expected.best.tolist()) if best < 0.7]
        assert sorted(entry["latent"] for entry in pair["latents"]) == alone(expected, 0.7) == live
        for entry in pair["latents"]:
            order = codes[name][:, entry["latent"]].argsort(descending=True, stable=True)
            assert entry["top_samples"][0] == int(order[0])
    assert any(pair["latents"] for pair in written["pairs"])


def test_concepts_have_what_was_achieved_and_what_was_possible(tested):
    folder, module, data, report, trainer, codes, concepts = tested
    written = json.loads((folder / "visibility.json").read_text())
    train, test = data.split("train"), data.split("test")
    fields = {name: sae.sae.receptive_field() for name, sae in module.saes().items()}
    possible = bounds(
        train.activations, train.concepts, 3, [*fields.values()], (test.activations, test.concepts), n_resamples=10
    )
    for i, row in enumerate(written["concepts"]):
        assert row["concept"] == data.concept_names[i]
        for name, seen in row["saes"].items():
            best = concept_f1(codes[name], concepts, 3, top_n=1).best[i]
            assert seen["best_f1"] == pytest.approx(float(best), abs=1e-5)
            assert seen["receptive_field"] == fields[name].name
            # fitted to the same samples, which come in the order of batches
            assert seen["bound"]["f1"] == pytest.approx(float(possible[fields[name]].f1[i]), abs=0.05)
            logged = trainer.callback_metrics[f"{name}/test/bound/{row['concept']}"]
            assert float(logged) == pytest.approx(seen["bound"]["f1"], abs=1e-5)
            assert seen["bound"]["low"] <= seen["bound"]["f1"] <= seen["bound"]["high"]
    page = Page((folder / "report.html").read_text())
    assert "Visibility" in page.text
    assert f"Jaccard index of {report.min_jaccard:g}" in page.text
    assert (folder / "figures" / "test" / "visibility.png").is_file()


def test_unlabelled_data_have_pairs_only(files, tmp_path):
    report = VisibilityReport()
    run(Comparison(4, MEMBERS), make_data(files, labels=False), tmp_path, ConceptRecovery(), report)
    written = json.loads((tmp_path / "visibility.json").read_text())
    assert written["concepts"] == []
    assert len(written["pairs"]) == 6
    assert not (tmp_path / "figures" / "test" / "visibility.png").exists()


def test_large_saes_are_left_out_with_a_message(files, tmp_path, caplog):
    report = VisibilityReport(max_latents=10, max_samples=0)
    with caplog.at_level("INFO"):
        run(Comparison(4, MEMBERS), make_data(files), tmp_path, ConceptRecovery(), report)
    assert set(report.results.overlaps) == {("relu", "topk"), ("topk", "relu")}
    assert "not looked for in spade: more latents than visibility.max_latents = 10" in caplog.text
    assert all(not sight.bound.known for seen in report.results.sights.values() for sight in seen)


def test_a_single_sae_has_nobody_to_be_compared_with(files, tmp_path):
    report = VisibilityReport()
    run(make_sae(), make_data(files), tmp_path, ConceptRecovery(), report)
    assert report.results is None
    assert not (tmp_path / "visibility.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_jaccard": 1.5}, "min_jaccard must lie between 0 and 1, but is 1.5"),
        ({"max_samples": -1}, "max_samples must be at least 0, but is -1"),
        ({"max_latents": -1}, "max_latents must be at least 0, but is -1"),
        ({"n_resamples": 0}, "n_resamples must be at least 1, but is 0"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        VisibilityReport(**arguments)
