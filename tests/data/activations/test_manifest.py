"""Manifests that are damaged, of another format, or forged with the right checksum: all refused, with the place."""

import json
import shutil
from pathlib import Path

import pytest

from sae_lightning.data.activations.manifest import read_manifest
from sae_lightning.run.seal import seal_json
from tests.helpers.activations import Numbers, forged, harvest

pytest.importorskip("litdata")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return harvest(tmp_path_factory.mktemp("cache") / "cache", Numbers(60, 20))


@pytest.fixture
def manifest(cache, tmp_path):
    """The manifest of a cache, to be changed."""
    return Path(shutil.copy(cache / "manifest.json", tmp_path))


def test_a_folder_without_a_manifest_or_with_another_file_of_that_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no manifest\.json in"):
        read_manifest(tmp_path)
    for content in (b"", b"{", b"[]", b"null", b'{"format": 2}', b"\xff\xfe", b"[" * 100_000):
        (tmp_path / "manifest.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"is damaged: manifest\.json cannot be read \(it holds no checksum"):
            read_manifest(tmp_path)
    (tmp_path / "manifest.json").unlink()
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ValueError, match=r"there is no manifest\.json in"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b'{"format": 1}', *map(seal_json, ({"format": 3}, {"format": "x"}, {"a": 1}))])
def test_another_format_is_refused_with_what_to_do(content, tmp_path):
    (tmp_path / "manifest.json").write_bytes(content)
    message = r"cache must be of format 2, but manifest\.json of .* is of format .*: harvest again, with --overwrite"
    with pytest.raises(ValueError, match=message):
        read_manifest(tmp_path)


def entry(manifest, split="train"):
    return manifest["layers"]["first"]["splits"][split][0]


CHANGES = {
    "names renamed": lambda m: m.update(concept_names=["a", "b", "other"]),
    "names reversed": lambda m: m["concept_names"].reverse(),
    "mean NaN": lambda m: m["layers"]["first"]["mean"].__setitem__(0, float("nan")),
    "mean changed": lambda m: m["layers"]["first"]["mean"].__setitem__(0, 0.5),
    "mean shorter": lambda m: m["layers"]["first"]["mean"].pop(),
    "d_in": lambda m: m["layers"]["first"].update(d_in=5),
    "rows": lambda m: entry(m).update(rows=[1]),
    "dtype": lambda m: m["config"].update(dtype="float16"),
    "split replaced": lambda m: m["layers"]["first"]["splits"].update(val=m["layers"]["first"]["splits"]["test"]),
    "layer outside": lambda m: m["layers"].update({"../../x": m["layers"].pop("first")}),
    "file outside": lambda m: entry(m).update(file="../../x"),
    "complete": lambda m: m.update(complete=1),
    "another key": lambda m: m.update(more=1),
    "a key less": lambda m: m.pop("tokens"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_without_its_checksum_is_refused(change, manifest):
    content = json.loads(manifest.read_text())
    CHANGES[change](content)
    manifest.write_text(json.dumps(content, indent=1))
    with pytest.raises(ValueError, match=r"manifest\.json cannot be read \(its content has another checksum"):
        read_manifest(manifest.parent)


def layers(change):
    """Change the names of the layers, consistently."""

    def changed(manifest):
        manifest["config"]["layers"] = [change(name) for name in manifest["config"]["layers"]]
        found = {}
        for name, layer in manifest["layers"].items():
            for split, chunks in layer["splits"].items():
                for chunk in chunks:
                    chunk["file"] = f"{change(name)}/{split}/" + chunk["file"].rpartition("/")[2]
            found[change(name)] = layer
        manifest["layers"] = found

    return changed


def huge(manifest):
    """A billion features: the mean, which lies in the manifest itself, cannot have that many."""
    layer = manifest["layers"]["first"]
    layer.update(d_in=10**9)
    for chunks in layer["splits"].values():
        for chunk in chunks:
            chunk["bytes"] = 4 * (len(chunk["rows"]) + 2) + sum(36 + n * (4 * 10**9 + 24) for n in chunk["rows"])


def swapped(manifest):
    layer = manifest["layers"]["first"]["splits"]
    layer["val"], layer["test"] = layer["test"], layer["val"]


HOSTILE = {
    "concept_names": [
        (lambda m: m.update(concept_names=["a", "b"]), r"concepts\.\w+ must be a mapping of concept_names"),
        (lambda m: m.update(concept_names=["a", "b", "b"]), "concept_names must be distinct"),
        (
            lambda m: m.update(concept_names=m["concept_names"][::-1]),
            r"concepts\.\w+ must be a mapping of concept_names",
        ),
        (lambda m: m.update(concept_names=["a", "b", 3]), r"concept_names\[2\] must be a string"),
        (lambda m: m.update(concept_names="abc"), "concept_names must be a list"),
    ],
    "counts": [
        (lambda m: m["samples"].update(train=10**12), r"samples\.train must be the sum"),
        (lambda m: m["samples"].update(more=1), "samples must be one of"),
        (lambda m: m["samples"].pop("train"), "must be of the splits"),
        (lambda m: m["unlabelled"].update(train=-1), "must be an integer of at least 0"),
        (lambda m: m.update(tokens=1.5), "tokens must be an integer of at least 0"),
        (lambda m: m.update(examples=True), "examples must be an integer of at least 0"),
        (lambda m: m.update(skipped=[1]), r"skipped\[0\] must be a string"),
    ],
    "layer": [
        (layers(lambda name: f"../../{name}"), "names that folders of a cache can have"),
        (layers(lambda name: f"/absolute/{name}"), "names that folders of a cache can have"),
        (layers(lambda name: f"C:\\{name}"), "names that folders of a cache can have"),
        (layers(lambda name: f".{name}"), "names that folders of a cache can have"),
        (layers(lambda name: "." * (2 + (name == "first"))), "names that folders of a cache can have"),
        (layers(lambda name: f"{name}\0"), "names that folders of a cache can have"),
        (layers(lambda name: f"{name}\ud800"), "names that folders of a cache can have"),
        (layers(lambda name: name * 100), "names that folders of a cache can have"),
        (layers(lambda name: "" if name == "first" else name), "names that folders of a cache can have"),
        (layers(lambda name: "Shards" if name == "first" else name), "names that folders of a cache can have"),
        (layers(lambda name: {"first": "x", "second": "X"}[name]), "names that differ by more than their case"),
        (lambda m: m["layers"].update(third=m["layers"]["first"]), r"layers\.third must be one of config\.layers"),
        (lambda m: m.update(layers=[]), "layers must be a mapping"),
    ],
    "size": [
        (lambda m: m["layers"]["first"].update(d_in=10**30), "mean must be of length 10+"),
        (lambda m: m["layers"]["first"].update(d_in=0), "d_in must be an integer of at least 1"),
        (lambda m: m["layers"]["first"].update(d_in=5), "must be of length 5"),
        (huge, "must be of length 1000000000"),
        (lambda m: entry(m).update(rows=[10**12]), r"rows must be blocks of 1024"),
        (lambda m: entry(m).update(rows=[]), r"rows must be blocks of 1024"),
        (lambda m: entry(m).update(rows=[1, 1]), r"rows must be blocks of 1024"),
        (lambda m: entry(m).update(rows=[1]), r"bytes must be \d+, by rows, d_in and dtype"),
        (lambda m: entry(m).update(rows="1"), r"rows must be a list"),
        (lambda m: entry(m).update(bytes=2**40), r"bytes must be \d+, by rows, d_in and dtype"),
        (lambda m: entry(m).update(blocks=[]), "blocks must be of length 1"),
        (lambda m: entry(m).update(sha256="x"), "sha256 must be a SHA-256"),
        (lambda m: m["layers"]["first"]["mean"].pop(), "mean must be of length 4"),
        (lambda m: m["layers"]["first"].update(mean=None), "mean must be of length 4"),
        (lambda m: m["layers"]["first"].update(mean=["x"] * 4), r"mean\[0\] must be a finite float"),
    ],
    "files": [
        (lambda m: entry(m).update(file="../../x"), r"file must be that of a chunk in first/train"),
        (lambda m: entry(m).update(file="/etc/passwd"), r"file must be that of a chunk in first/train"),
        (lambda m: entry(m).update(file=entry(m, "val")["file"]), r"file must be that of a chunk in first/train"),
        (lambda m: entry(m).update(file="first/train/../train/chunk-000000.bin"), "file must be that of a chunk"),
        (lambda m: entry(m).update(file="first/train/chunk-0000000.bin"), "file must be that of a chunk"),
        (lambda m: m["layers"]["first"]["splits"]["train"].reverse(), "must be of shards in their order"),
        (lambda m: m["layers"]["first"]["splits"]["train"].append(entry(m)), "must be of shards in their order"),
        (lambda m: m["shards"].clear(), "must be of shards in their order"),
        (lambda m: m["layers"]["first"]["splits"].pop("val"), "splits must be of the splits"),
        (swapped, "file must be that of a chunk in first/val"),
    ],
    "config": [
        (lambda m: m["config"].update(dtype="float64"), r"config\.dtype must be one of"),
        (lambda m: m["config"].update(dtype="float16"), r"bytes must be \d+, by rows, d_in and dtype"),
        (lambda m: m["config"].update(dtype="__class__"), r"config\.dtype must be one of"),
        (lambda m: m["config"]["host"].update(crop=1e9), r"config\.host\.crop must be above 0 and at most 1"),
        (lambda m: m["config"]["host"].update(init_args=[]), r"config\.host\.init_args must be a mapping"),
        (lambda m: m["config"].pop("host"), "config must be a mapping with the keys"),
        (lambda m: m["config"]["source"].update(class_path=3), r"config\.source\.class_path must be a string"),
        (lambda m: m.update(config=None), "config must be a mapping"),
        (lambda m: m.update(complete="yes"), "complete must be true or false"),
    ],
}


@pytest.mark.parametrize(("kind", "i"), [(kind, i) for kind, changes in HOSTILE.items() for i in range(len(changes))])
def test_a_forged_manifest_is_refused_with_the_place(kind, i, manifest):
    change, message = HOSTILE[kind][i]
    forged(manifest, lambda content: change(content) and None)
    with pytest.raises(ValueError, match=rf"damaged: manifest\.json is not valid \(.*{message}"):
        read_manifest(manifest.parent)


def test_a_whole_manifest_is_read(cache):
    assert read_manifest(cache)["complete"]
    assert read_manifest(str(cache)) == read_manifest(cache)
