"""The callbacks find what a sort of the whole test split finds, and the page says what the results say."""

import json
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from torch.utils.data import DataLoader

from sae_lightning import Comparison, SpaDE, TensorDataModule, TopKSAE
from sae_lightning.callbacks import CodesWriter, ConceptRecovery, LatentMeaning, ReportPage, load_codes
from sae_lightning.callbacks.meaning import as_markdown, latents_to_show
from sae_lightning.data.contexts import TextContext
from sae_lightning.metrics.functional import top_examples
from sae_lightning.nn import fires
from tests.helpers.contexts import ImageData, TextData, make_data, make_sae, run
from tests.helpers.pages import Page
from tests.helpers.runs import events, run_cli


def expected(module, data, n=8):
    split = data.split("test")
    with torch.no_grad():
        codes = module.eval().encode(split.activations)
    return top_examples(codes, torch.arange(len(split)), n)


def test_examples_are_those_of_the_whole_split(files, tmp_path):
    module, data, meaning = make_sae(), make_data(files), LatentMeaning(n_examples=3)
    run(module, data, tmp_path, ConceptRecovery(), meaning)
    top, shown = meaning.results[""]
    reference = expected(module, data, 3)
    assert len(data.split("test")) == 50  # more than three batches of 16
    assert torch.equal(top.indices, reference.indices)
    torch.testing.assert_close(top.values, reference.values)
    torch.testing.assert_close(top.mean_code, reference.mean_code, equal_nan=True, rtol=1e-5, atol=1e-7)
    assert torch.equal(top.fired, reference.fired)
    assert sorted(shown) == top.fired.nonzero().flatten().tolist()


class Backwards(TextData):
    """Deals the test batches in the opposite order, each with the positions of its samples or without."""

    known = True

    def test_dataloader(self):
        batches = list(super().test_dataloader())[::-1]
        if not self.known:
            batches = [batch._replace(positions=None) for batch in batches]
        return DataLoader(batches, batch_size=None)

    def predict_dataloader(self):
        return self.test_dataloader()


class Unknown(Backwards):
    known = False


def test_samples_are_known_by_their_positions(files, tmp_path):
    """The order of the batches does not matter."""
    module, data, meaning = make_sae(), make_data(files, Backwards), LatentMeaning(n_examples=3)
    run(module, data, tmp_path, ConceptRecovery(), meaning, ReportPage())
    top, reference = meaning.results[""].top, expected(module, data, 3)
    torch.testing.assert_close(top.values, reference.values)
    assert torch.equal(top.indices, reference.indices)


def test_batches_without_positions_are_told(files, tmp_path, caplog):
    meaning = LatentMeaning()
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        run(make_sae(), make_data(files, Unknown), tmp_path, ConceptRecovery(), meaning, ReportPage())
    assert caplog.text.count("No examples of latents are collected: the batches of the test do not say which") == 1
    assert meaning.results == {}
    (sae,) = Page((tmp_path / "report.html").read_text()).data["saes"]
    assert sae["latents"] == []


@pytest.mark.parametrize("kind", [Backwards, Unknown])
def test_codes_are_written_in_stored_order_where_it_is_known(files, tmp_path, kind):
    module, data = make_sae(), make_data(files, kind)
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[CodesWriter(str(tmp_path))], barebones=True)
    trainer.predict(module.eval(), datamodule=data, return_predictions=False)
    codes, concepts = load_codes(tmp_path / "codes.safetensors")
    split = data.split("test")
    order = torch.arange(50)
    if kind is Unknown:
        order = torch.cat(order.split(16)[::-1])
    with torch.no_grad():
        reference = module.encode(split.activations[order])
    torch.testing.assert_close(codes.to_dense(), reference.where(fires(reference), 0.0))
    assert torch.equal(concepts, split.concepts[order])


def test_which_latents_are_shown():
    f1 = torch.tensor([[0.9, 0.1, 0.0, 0.5, 0.0, 0.0], [0.8, 0.7, 0.0, 0.0, 0.0, 0.0]])
    fired = torch.tensor([5, 3, 9, 2, 1, 0])
    assert latents_to_show(fired, f1, 10) == [0, 3, 1, 2, 4]
    assert latents_to_show(fired, f1, 2) == [0, 3]
    assert latents_to_show(fired, None, 10) == [2, 0, 1, 3, 4]
    assert latents_to_show(fired, torch.full((2, 6), torch.nan), 10) == [2, 0, 1, 3, 4]


def test_no_more_latents_than_asked_for(files, tmp_path):
    meaning = LatentMeaning(max_latents=3)
    run(make_sae(), make_data(files), tmp_path, ConceptRecovery(), meaning, ReportPage(max_latents=2))
    assert len(meaning.results[""].shown) == 3
    assert len(Page((tmp_path / "report.html").read_text()).data["saes"][0]["latents"]) == 2


def test_texts_go_to_tensorboard(files, tmp_path):
    meaning = LatentMeaning(tensorboard_latents=2)
    run(make_sae(), make_data(files), tmp_path, ConceptRecovery(), meaning)
    read = events(tmp_path)
    shown = meaning.results[""].shown[:2]
    assert sorted(read.Tags()["tensors"]) == sorted(f"latents/{i}/text_summary" for i in shown)
    (event,) = read.Tensors(f"latents/{shown[0]}/text_summary")
    text = event.tensor_proto.string_val[0].decode()
    position = int(meaning.results[""].top.indices[shown[0], 0])
    assert f"&lt;b&gt;before&lt;/b&gt; {position} **token{position}** after" in text


def test_images_go_to_tensorboard(files, tmp_path):
    meaning = LatentMeaning(tensorboard_latents=2)
    run(make_sae(), make_data(files, ImageData), tmp_path, ConceptRecovery(), meaning)
    assert sorted(events(tmp_path).Tags()["images"]) == sorted(f"latents/{i}" for i in meaning.results[""].shown[:2])


def test_markdown_has_no_other_mark_than_the_token():
    texts = [TextContext("a*b", " <i>|_x_\n", "c\n\nd"), TextContext("a", "\n", "b")]
    assert as_markdown(texts, [1.0, 0.25]).splitlines()[2:] == [
        r"| 1 | a\*b **&lt;i&gt;\|\_x\_** c d |",
        "| 0.25 | a**␣**b |",
    ]


@pytest.mark.parametrize("kind", [TextData, ImageData])
def test_page_shows_examples_with_their_contexts(files, tmp_path, kind):
    module = Comparison(4, {"spade": partial(SpaDE, d_sae=12), "topk": partial(TopKSAE, d_sae=12, k=4)})
    data, meaning = make_data(files, kind), LatentMeaning()
    run(module, data, tmp_path, ConceptRecovery(), meaning, ReportPage())
    shown = Page((tmp_path / "report.html").read_text()).data
    assert [sae["name"] for sae in shown["saes"]] == ["spade", "topk"]
    labels = data.split("test").concepts
    for sae in shown["saes"]:
        top = meaning.results[sae["name"]].top
        assert [latent["i"] for latent in sae["latents"]] == meaning.results[sae["name"]].shown
        for latent in sae["latents"]:
            samples = [shown["samples"][place] for place, _ in latent["examples"]]
            positions = [p for p in top.indices[latent["i"]].tolist() if p >= 0]
            assert [sample[0] for sample in samples] == positions
            for position, concepts, *context in samples:
                assert concepts == [int(labels[position])]
                if kind is TextData:
                    assert context == [f"<b>before</b> {position} ", f"token{position}", " after"]
                else:
                    assert context[1] == [0.0, 0.25, 0.5, 0.75]
    assert len(shown["images"]) == (0 if kind is TextData else 3)


def test_examples_make_room(files, tmp_path):
    """Where there is room for a few texts only, they are the largest code of each latent."""
    run(make_sae(), make_data(files), tmp_path, ConceptRecovery(), LatentMeaning(), ReportPage(max_megabytes=0.0005))
    page = Page((tmp_path / "report.html").read_text())
    assert 0 < len(page.data["samples"]) < 30
    assert "samples are left out, to keep the page below 0.0005 MB" in page.text
    assert not any(tag == "figure" for tag, _ in page.tags)


def test_page_without_labels_or_contexts(files, tmp_path):
    data = make_data(files, TensorDataModule, labels=False)
    run(make_sae(), data, tmp_path, ConceptRecovery(), LatentMeaning(), ReportPage())
    shown = Page((tmp_path / "report.html").read_text()).data
    assert shown["concepts"] == []
    assert all(sample[1:] == [[]] for sample in shown["samples"])
    frequencies = [latent["frequency"] for latent in shown["saes"][0]["latents"]]
    assert frequencies == sorted(frequencies, reverse=True)


def test_switched_off(files, tmp_path):
    module, meaning = make_sae(), LatentMeaning(enabled=False)
    run(module, make_data(files), tmp_path, ConceptRecovery(), meaning, ReportPage(enabled=False))
    assert meaning.results == {}
    assert not hasattr(module, "meaning_metrics")
    assert not (tmp_path / "report.html").exists()


def test_page_without_examples(files, tmp_path):
    run(make_sae(), make_data(files), tmp_path, ConceptRecovery(), LatentMeaning(enabled=False), ReportPage())
    (sae,) = Page((tmp_path / "report.html").read_text()).data["saes"]
    assert sae["latents"] == []
    assert len(sae["detectors"]) == 3


@pytest.mark.parametrize(("argument", "least"), [("n_examples", 1), ("max_latents", 1), ("tensorboard_latents", 0)])
def test_arguments_are_checked(argument, least):
    LatentMeaning(**{argument: least})
    with pytest.raises(ValueError, match=f"{argument} must be at least {least}, but is {least - 1}"):
        LatentMeaning(**{argument: least - 1})


@pytest.mark.parametrize("argument", ["max_latents", "max_megabytes"])
def test_arguments_of_the_page_are_checked(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 0, but is -1"):
        ReportPage(**{argument: -1})


@pytest.mark.slow
def test_command_line_writes_the_page_with_the_numbers_of_the_results(experiment):
    folder = experiment("compare")
    page = Page((folder / "report.html").read_text())
    metrics = json.loads((folder / "results.json").read_text())["test"]["metrics"]
    rows, names = [], ["spade", "relu", "jumprelu", "topk"]
    texts = [(kind, text.split()) for kind, text in page.cells]
    for i, (_, words) in enumerate(texts):
        if len(rows) < 4 and words and words[0] in names and len(texts[i + 1 : i + 13]) == 12:  # the first table
            rows.append((words[0], [w[0] for _, w in texts[i + 1 : i + 13]]))
    assert [name for name, _ in rows] == names
    for name, cells in rows:
        values = {key.removeprefix(f"{name}/test/"): v for key, v in metrics.items() if key.startswith(f"{name}/")}
        assert cells[0] == f"{values['l0']:.2f}"
        assert cells[1] == f"{values['nmse']:.2e}"
        assert cells[2] == f"{values['dead_latents']:.1%}"
        assert cells[5] == f"{values['best_f1']:.3f}"
        for concept, cell in enumerate(cells[6:]):
            assert cell == f"{values[f'best_f1/C{concept}']:.3f}"
    assert any(tag == "figure" for tag, _ in page.tags)
    assert not (folder / ".report.html.tmp").exists()


@pytest.mark.slow
def test_command_line_switches_the_page_off(experiment, tmp_path):
    checkpoint = experiment("spade") / "checkpoints" / "last.ckpt"
    config = experiment("spade") / "config.yaml"
    args = ["-c", config, "--ckpt_path", checkpoint, "--run_dir", tmp_path / "run"]
    outcome = run_cli("test", *args, "--page.enabled", "false", "--meaning.enabled", "false")
    assert outcome.code == 0, outcome.err[-2000:]
    assert not (tmp_path / "run" / "report.html").exists()
    assert (tmp_path / "run" / "results.json").exists()
