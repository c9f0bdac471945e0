"""From a model's folder to a page, through the real command line."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import pytest
import torch
import yaml

from tests.helpers import hosts
from tests.helpers.activations import stored
from tests.helpers.runs import CONFIGS, QUIET, ROOT, contents, process_environment, run_cli

pytest.importorskip("transformers")
pytest.importorskip("litdata")
LAYERS = ("encoder.layer.0", "encoder.layer.2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return hosts.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A hundred documents of ten sentences in CoNLL-U, whose words are labelled."""
    folder = tmp_path_factory.mktemp("corpus")
    tags = {
        "the": "DET",
        "a": "DET",
        "cat": "NOUN",
        "dog": "NOUN",
        "mat": "NOUN",
        "sat": "VERB",
        "said": "VERB",
        ".": "PUNCT",
    }
    generator = torch.Generator().manual_seed(0)
    lines = []
    for document in range(100):
        lines.append(f"# newdoc id = d{document}")
        for _ in range(10):
            chosen = torch.randint(
                len(tags), (int(torch.randint(2, 9, (1,), generator=generator)),), generator=generator
            )
            for i, word in enumerate(list(tags)[j] for j in chosen):
                lines.append("\t".join([str(i + 1), word, word, tags[word], "_", "_", "_", "_", "_", "_"]))
            lines.append("")
    (folder / "corpus.conllu").write_text("\n".join(lines) + "\n")
    return folder / "corpus.conllu"


def arguments(model, corpus, output):
    return (
        *("harvest", "--host", "TextHost", "--host.name", model, "--layers", f"[{','.join(LAYERS)}]"),
        *("--source", "ConlluFiles", "--source.path", corpus, "--output", output),
        *("--window_size", "200", "--devices", "[cpu]"),
    )


@pytest.fixture(scope="module")
def cache(model, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("harvest") / "cache"
    outcome = run_cli(*arguments(model, corpus, folder))
    assert outcome.code == 0, outcome.err
    assert "tokens/s" in outcome.err
    assert "activations of 1,000 examples (" in outcome.out
    return folder


@pytest.mark.slow
def test_a_harvest_a_comparison_its_test_and_its_page(cache, tmp_path):
    config = yaml.safe_load((CONFIGS / "language" / "compare.yaml").read_text())
    config["data"]["init_args"] = {"cache": str(cache), "layer": LAYERS[1], "batch_size": 128}
    for member in config["model"]["init_args"]["members"].values():
        member["init_args"]["d_sae"] = 32
    config["model"]["init_args"]["processes"] = 1
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(config))
    run = tmp_path / "run"
    common = ("-c", tmp_path / "compare.yaml", *QUIET, "--run_dir", run)
    config["trainer"].update(max_steps=20, val_check_interval=20, log_every_n_steps=10)
    (tmp_path / "compare.yaml").write_text(yaml.safe_dump(config))
    fit = run_cli("fit", *common, "--trainer.accelerator", "cpu")
    assert fit.code == 0, fit.err
    test = run_cli("test", *common, "--trainer.accelerator", "cpu", "--ckpt_path", run / "checkpoints" / "last.ckpt")
    assert test.code == 0, test.err
    page = (run / "report.html").read_text()
    assert "NOUN" in page
    metrics = json.loads((run / "results.json").read_text())["test"]["metrics"]
    assert {f"{name}/test/best_f1/VERB" for name in config["model"]["init_args"]["members"]} <= metrics.keys()
    assert all(word in page for word in ("cat", "said"))


@pytest.mark.parametrize("live", [False, True])
def test_harvested_activations_are_diagnosed(live, cache, model, corpus, tmp_path):
    data = ["CachedDataModule", "--data.cache", cache, "--data.layer", LAYERS[1], "--data.batch_size", 128]
    if live:
        data = ["LiveDataModule", "--data.host", "TextHost", "--data.host.name", model]
        data += ["--data.source", "ConlluFiles", "--data.source.path", corpus, "--data.layer", LAYERS[1]]
        data += ["--data.batch_size", 128, "--data.window_size", 200]
    limits = ["--max_samples", 1000, "--n_resamples", 20, "--num_threads", 1]
    outcome = run_cli("diagnose", "--data", *data, *limits, "--output", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert {"NOUN", "VERB", "PUNCT"} <= {concept["name"] for concept in found["concepts"]}
    assert sum(concept["n_samples"] for concept in found["concepts"]) == 1000
    assert found["recommendation"]["architecture"] is not None


def test_both_layers_of_a_cache_have_what_the_model_says(cache, model, corpus):
    transformers = pytest.importorskip("transformers")
    from sae_lightning.data.sources import ConlluFiles

    source = ConlluFiles(str(corpus))
    reference = transformers.AutoModel.from_pretrained(model).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    for layer, number in zip(LAYERS, (1, 3), strict=True):
        activations, concepts, examples, starts, ends = stored(cache, layer)
        for row in range(0, len(activations), 500):
            example = source[int(examples[row])]
            span = (int(starts[row]), int(ends[row]))
            word = example.spans.index(span)
            assert int(concepts[row]) == example.concepts[word]
            found = tokenizer(example.text, return_tensors="pt", return_offsets_mapping=True)
            place = found.pop("offset_mapping")[0].tolist().index(list(span))
            with torch.no_grad():
                states = reference(**found, output_hidden_states=True).hidden_states[number]
            torch.testing.assert_close(activations[row], states[0, place], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_killed_harvest_goes_on_and_ends_with_the_same_files(cache, model, corpus, tmp_path):
    folder = tmp_path / "cache"
    command = [sys.executable, "-m", "sae_lightning", *map(str, arguments(model, corpus, folder))]
    process = subprocess.Popen(
        command, cwd=ROOT, env=process_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    begin = time.time()
    while process.poll() is None and not list(folder.glob("shards/*.json")) and time.time() - begin < 120:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not json.loads((folder / "manifest.json").read_text())["complete"]
    again = subprocess.run(command, cwd=ROOT, env=process_environment(), capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert contents(folder) == contents(cache)


@pytest.mark.slow
def test_two_devices_write_the_same_files(cache, model, corpus, tmp_path):
    command = [sys.executable, "-m", "sae_lightning", *map(str, arguments(model, corpus, tmp_path / "cache"))]
    command[-1] = "[cpu,cpu]"
    done = subprocess.run(command, cwd=ROOT, env=process_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "cache") == contents(cache)


def test_wrong_arguments_end_with_a_message_alone(cache, model, corpus, tmp_path):
    for changes, message in [
        (("--layers", "[encoder.layer.9]"), "layer must be one of the model's ['embeddings'"),
        (("--host.name", tmp_path), "cannot be loaded as a folder with AutoModel"),
        (("--source.path", tmp_path / "nothing.conllu"), "nothing.conllu"),
        (("--keep", "[TREE]"), "keep must name concepts of the source"),
        (("--window_size", "0"), "window_size must be at least 1, but is 0"),
        (("--output", cache), "holds a cache of another configuration (window_size was 200, now 100)"),
    ]:
        window = ("--window_size", "100") if "--output" in changes else ()
        outcome = run_cli(*arguments(model, corpus, tmp_path / "new"), *changes, *window)
        assert outcome.code == 2, message
        assert message in outcome.err
        assert "Traceback" not in outcome.err
    outcome = run_cli(*arguments(model, corpus, corpus.parent), "--overwrite", "true")
    assert "holds no cache (no manifest.json), so it is not deleted" in outcome.err
    assert corpus.is_file()


def test_a_folder_that_cannot_be_written_ends_with_a_message_and_status_1(model, corpus, tmp_path, monkeypatch):
    replace = os.replace

    def refuse(source, target):
        if str(target).endswith("chunk-000001.bin"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", refuse)
    outcome = run_cli(*arguments(model, corpus, tmp_path / "cache"))
    assert outcome.code == 1
    assert f"error: the cache cannot be written to '{tmp_path}/cache': No space left on device" in outcome.err


def test_a_cache_is_replaced_when_asked_to(model, corpus, tmp_path):
    for window in ("200", "500"):
        outcome = run_cli(*arguments(model, corpus, tmp_path / "cache"), "--window_size", window, "--overwrite", "true")
        assert outcome.code == 0, outcome.err
    assert len(list((tmp_path / "cache" / "shards").iterdir())) == 2


def test_training_refuses_a_damaged_cache_or_another_model_by_name(cache, tmp_path):
    common = ("--model", "TopKSAE", "--model.d_sae", "16", "--model.k", "4", "--data", "CachedDataModule")
    common += ("--data.cache", cache, "--run_dir", tmp_path / "run", "--trainer.max_steps", "1")
    for changes, message in [
        (("--data.layer", "encoder.layer.1"), "layer must be one of those in"),
        (("--data.layer", LAYERS[0], "--data.model", "gpt2"), "cache must be of the model 'gpt2'"),
    ]:
        outcome = run_cli("fit", *common, *changes)
        assert outcome.code == 2
        assert message in outcome.err
    assert not (tmp_path / "run").exists()
    damaged = shutil.copytree(cache, tmp_path / "cache")
    for file in (
        "manifest.json",
        "shards/000001.json",
        f"{LAYERS[0]}/val/index.json",
        f"{LAYERS[0]}/train/chunk-000001.bin",
    ):
        content = bytearray((damaged / file).read_bytes())
        content[len(content) // 2] ^= 1
        (damaged / file).write_bytes(content)
        outcome = run_cli("fit", *common, "--data.layer", LAYERS[0], "--data.cache", damaged)
        assert outcome.code == 2
        assert f"error: cache '{damaged}' is damaged: {file} " in outcome.err
        assert "Traceback" not in outcome.err
        shutil.copy(cache / file, damaged / file)


def test_a_damaged_cache_is_named_by_a_harvest_too(cache, model, corpus, tmp_path):
    damaged = shutil.copytree(cache, tmp_path / "cache")
    (damaged / "shards/000001.json").write_bytes(b"{}")
    outcome = run_cli(*arguments(model, corpus, damaged))
    assert outcome.code == 2
    assert (
        f"error: cache '{damaged}' is damaged: shards/000001.json cannot be read (it holds no checksum" in outcome.err
    )
    assert "Traceback" not in outcome.err


def test_the_help_says_that_there_is_harvest():
    assert "  harvest   write a model's activations to a cache" in run_cli("--help").out
    outcome = run_cli("harvest", "--help")
    assert "--max_samples" in outcome.out


def test_live_activations_are_trained_on_and_resumed(model, corpus, tmp_path):
    common = (
        *("--model", "TopKSAE", "--model.d_sae", "16", "--model.k", "4", "--data", "LiveDataModule"),
        *("--data.host", "TextHost", "--data.host.name", model, "--data.layer", LAYERS[0]),
        *("--data.source", "ConlluFiles", "--data.source.path", corpus, "--data.window_size", "100"),
        *("--data.batch_size", "64", "--data.n_val", "100", "--data.n_test", "100", "--trainer.accelerator", "cpu"),
        *("--trainer.max_epochs", "-1", *QUIET),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        whole = run_cli("fit", *common, "--trainer.max_steps", "12", "--run_dir", tmp_path / "whole")
        half = run_cli("fit", *common, "--trainer.max_steps", "7", "--run_dir", tmp_path / "half")
        assert (whole.code, half.code) == (0, 0), whole.err + half.err
        rest = run_cli(
            *("fit", *common, "--trainer.max_steps", "12", "--run_dir", tmp_path / "half"),
            *("--ckpt_path", tmp_path / "half" / "checkpoints" / "last.ckpt"),
        )
    assert rest.code == 0, rest.err
    weights = [
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for name in ("whole", "half")
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
