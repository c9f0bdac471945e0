"""Files of earlier versions name classes by paths that are no more: they load all the same."""

import importlib
import json

import pytest
import torch
import yaml

from sae_lightning import load_module
from sae_lightning.data.activations.cache import CacheWriter
from sae_lightning.data.activations.cached import CachedDataModule
from sae_lightning.data.activations.hosts.base import Read
from sae_lightning.data.contexts import TextContext
from sae_lightning.data.datamodule import SPLIT_SEEDS
from sae_lightning.data.sources import JsonLines
from sae_lightning.moved import CLASSES, HOMES, MODULES, current, current_path, current_text
from sae_lightning.nn.parts import Recorded, described_class
from sae_lightning.subjects import LanguageModel, VisionModel
from tests.helpers.runs import QUIET, run_cli

OLD = "sae_lightning"  # the package, apart from what follows: these paths stay as they were
GRAMMAR = "S -> 'a' [0.5] | 'a' S [0.5]"
TINY = {"grammar_text": GRAMMAR, "n_positions": 16, "width": 8, "n_layers": 1, "n_heads": 2}
PATHS = {
    f"{OLD}.data.cached.CachedDataModule",
    f"{OLD}.data.formal_language.FormalLanguageDataModule",
    f"{OLD}.data.heterogeneity.HeterogeneityDataModule",
    f"{OLD}.data.images.ImageDataModule",
    f"{OLD}.data.live.LiveDataModule",
    f"{OLD}.data.sentences.SentenceDataModule",
    f"{OLD}.data.separability.SeparabilityDataModule",
    f"{OLD}.data.tensor.TensorDataModule",
    f"{OLD}.data.vision.read_vision_model",
    f"{OLD}.data.hosts.TextHost",
    f"{OLD}.data.hosts.image.ModuleHost",
    f"{OLD}.data.hosts.text.TextHost",
    f"{OLD}.callbacks.language.GrammarReport",
    f"{OLD}.callbacks.TopActivations",
    f"{OLD}.callbacks.meaning.TopActivations",
    f"{OLD}.callbacks.predictions.CodesWriter",
    f"{OLD}.callbacks.recovery_figures.RecoveryFigures",
    f"{OLD}.callbacks.stopping.GracefulStop",
    f"{OLD}.callbacks.vision.FeatureReport",
    f"{OLD}.subjects.feature_report.FeatureReport",
    f"{OLD}.subjects.grammar_report.GrammarReport",
    f"{OLD}.modules.LanguageModel",
    f"{OLD}.modules.VisionModel",
    f"{OLD}.modules.language_model.LanguageModel",
    f"{OLD}.modules.vision_model.VisionModel",
    f"{OLD}.nn.transformer.Transformer",
    f"{OLD}.nn.vision_transformer.VisionTransformer",
}


@pytest.mark.parametrize("path", sorted(PATHS))
def test_classes_of_earlier_versions_are_found(path):
    module, _, name = current_path(path).rpartition(".")
    assert getattr(importlib.import_module(module), name).__name__ == name


def test_every_place_exists_and_is_final():
    for home in HOMES:
        importlib.import_module(home)
    for path in (*MODULES, *CLASSES):
        now = MODULES.get(path) or CLASSES[path]
        assert MODULES.get(now, now) == now
        assert current_path(f"{path}.Name") == (f"{now}.Name" if path in MODULES else f"{path}.Name")


def test_only_whole_paths_of_this_package_are_changed():
    for text in (
        "torch.optim.Adam",
        "mine.sae_lightning.modules.LanguageModel",
        "runs/sae_lightning.modules.LanguageModel",
    ):
        assert current_text(text) == current(text) == current_path(text) == text
    old, now = f"{OLD}.modules.LanguageModel", current_path(f"{OLD}.modules.LanguageModel")
    assert now != old
    assert current_text(f"model: {{class_path: {old}}}  # {old}s") == f"model: {{class_path: {now}}}  # {old}s"
    assert current_text(f"--model={old}") == f"--model={now}"
    assert current({"a": [old, (f"{old}: its layers", 3)]}) == {"a": [now, (f"{now}: its layers", 3)]}
    assert current_path(None) is None


def test_a_checkpoint_loads(tmp_path):
    model = LanguageModel(**TINY)
    for path in (f"{OLD}.modules.language_model.LanguageModel", f"{OLD}.modules.LanguageModel"):
        saved = {"class_path": path, "init_args": model.describe()["init_args"], "samples_seen": 3}
        torch.save({"sae_lightning": saved, "state_dict": model.state_dict()}, tmp_path / "old.ckpt")
        loaded = load_module(tmp_path / "old.ckpt")
        assert type(loaded) is LanguageModel
        assert loaded.samples_seen == 3


def test_a_checkpoint_is_no_other_class_for_its_path():
    model = LanguageModel(**TINY)
    model.on_load_checkpoint({"sae_lightning": {"class_path": f"{OLD}.modules.language_model.LanguageModel"}})
    with pytest.raises(ValueError, match=r"the checkpoint is of class .*VisionModel, but the model is of class"):
        model.on_load_checkpoint({"sae_lightning": {"class_path": f"{OLD}.modules.vision_model.VisionModel"}})


def test_what_a_description_names_is_imported_from_this_package_alone():
    assert described_class(f"{OLD}.modules.vision_model.VisionModel", Recorded) is VisionModel
    with pytest.raises(ValueError, match="does not exist"):
        described_class(f"{OLD}.modules.vision_model.torch", Recorded)
    with pytest.raises(ValueError, match="is not known"):
        described_class("unittest.__main__.Thing", Recorded)


@pytest.mark.parametrize("form", ["config", "arguments", "one argument"])
def test_a_config_is_understood(form, tmp_path):
    data, model = f"{OLD}.data.separability.SeparabilityDataModule", f"{OLD}.modules.topk.TopKSAE"
    config = {
        "data": {"class_path": data, "init_args": {"batch_size": 16}},
        "model": {"class_path": model, "init_args": {"d_sae": 8, "k": 2}},
    }
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(config))
    given = {
        "config": ["-c", tmp_path / "old.yaml"],
        "arguments": ["--data", data, "--data.batch_size", 16, "--model", model, "--model.d_sae", 8, "--model.k", 2],
        "one argument": [f"--data={data}", f"--model={model}", "--model.d_sae=8", "--model.k=2"],
    }[form]
    outcome = run_cli("fit", *given, "--run_dir", tmp_path / "run", "--trainer.fast_dev_run", "true", *QUIET)
    assert outcome.code == 0, outcome.err


def test_a_run_goes_on(tmp_path):
    """From a folder as an earlier version left it."""
    grammar = tmp_path / "a.pcfg"
    grammar.write_text(GRAMMAR)
    args = ["--data", "SentenceDataModule", "--data.grammar", grammar, "--data.n_val", 8, "--data.n_test", 8]
    args += ["--data.batch_size", 4, "--data.max_length", 8]
    model = ["--model", "LanguageModel", "--model.width", 8, "--model.n_layers", 1, "--model.n_heads", 2]
    common = ["--run_dir", tmp_path / "run", "--trainer.accelerator", "cpu", *QUIET]
    first = run_cli("fit", *args, *model, *common, "--trainer.max_steps", 2)
    assert first.code == 0, first.err
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["sae_lightning"]["class_path"] = f"{OLD}.modules.language_model.LanguageModel"
    checkpoint["sae_lightning_data"]["class_path"] = f"{OLD}.data.sentences.SentenceDataModule"
    torch.save(checkpoint, tmp_path / "run" / "checkpoints" / "old.ckpt")
    old = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    old["data"]["class_path"] = f"{OLD}.data.sentences.SentenceDataModule"
    old["model"]["class_path"] = f"{OLD}.modules.language_model.LanguageModel"
    old["trainer"]["max_steps"] = 4
    (tmp_path / "old.yaml").write_text(yaml.safe_dump(old))
    then = run_cli("fit", "-c", tmp_path / "old.yaml", "--ckpt_path", path.with_name("old.ckpt"))
    assert then.code == 0, then.err
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert current(written) == written
    assert (
        torch.load(path, weights_only=True)["sae_lightning"]["class_path"]
        == LanguageModel(**TINY).describe()["class_path"]
    )


def harvested(texts, host):
    return {
        "host": {"class_path": host, "init_args": {"model": f"{OLD}.nn.transformer.Transformer: layers"}, "crop": None},
        "source": JsonLines(str(texts)).describe(),
        "layers": ["first"],
        "batch_size": 4,
        "dtype": "float32",
    }


def test_a_cache_goes_on_and_shows_its_texts(tmp_path):
    pytest.importorskip("litdata")
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "one two"}) + "\n")
    old = harvested(texts, f"{OLD}.data.hosts.text.TextHost")
    numbers = torch.arange(4)
    reads = {
        split: Read(
            {"first": torch.randn(4, 2)}, torch.zeros(4).long(), numbers * 0, numbers.int() * 0, numbers.int() + 1
        )
        for split in SPLIT_SEEDS
    }
    facts = {"examples": 1, "tokens": 4, "skipped": [], "unaligned": 0}
    CacheWriter(tmp_path / "cache", old, ["a"]).write(0, reads, **facts)
    writer = CacheWriter(tmp_path / "cache", current(old), ["a"])
    assert writer.record(0) is not None
    writer.finish(complete=True, n_shards=1)
    manifest = json.loads((tmp_path / "cache" / "manifest.json").read_text())
    assert manifest["config"] == old
    with pytest.raises(ValueError, match=r"another configuration \(host\.class_path was"):
        CacheWriter(tmp_path / "cache", {**old, "host": {**old["host"], "class_path": "mine.Host"}}, ["a"])
    data = CachedDataModule(str(tmp_path / "cache"), "first", batch_size=2, seed=0)
    data.setup()
    (context,) = data.contexts("test", [0])
    assert context == TextContext("", "o", "ne two")
