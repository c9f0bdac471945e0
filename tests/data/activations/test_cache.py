"""A harvest over what lies there already: damage is named and mended as the message says, and nothing else touched."""

import os
import re
import shutil
from pathlib import Path

import pytest

from sae_lightning.data import CachedDataModule
from sae_lightning.data.activations.cache import delete_cache
from sae_lightning.data.activations.harvest import Harvest
from sae_lightning.data.activations.manifest import read_manifest
from sae_lightning.data.activations.reading import WindowReader
from tests.helpers.activations import Numbers, WordHost, forged, harvest
from tests.helpers.runs import contents

pytest.importorskip("litdata")


def small(folder, **changes):
    return harvest(folder, Numbers(60, 20), **changes)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return small(tmp_path_factory.mktemp("cache") / "cache")


@pytest.fixture
def folder(cache, tmp_path):
    """A cache of which nothing is left to do, to be damaged."""
    return Path(shutil.copytree(cache, tmp_path / "cache"))


def interrupted(folder):
    """Make it a cache whose harvest was killed after its second shard, as it wrote the fourth."""
    for path in [*folder.rglob("chunk-000004.bin"), folder / "shards/000004.json", folder / "shards/000003.json"]:
        path.unlink()
    (folder / "manifest.json").unlink()
    for path in folder.rglob("index.json"):
        path.unlink()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = ["manifest.json", "shards/000001.json", "first/train/index.json", "second/train/chunk-000001.bin"]


def reading(folder):
    for layer in ("first", "second"):
        CachedDataModule(str(folder), layer, batch_size=16, seed=0).setup()


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("file", FILES)
def test_doing_what_the_message_says_mends_the_cache(file, damage, folder, cache):
    damage(folder / file)
    with pytest.raises(ValueError, match=re.escape(file)) as error:
        reading(folder)
    told = re.search(r"Delete it (?:with (\S+) )?and harvest again", str(error.value))
    assert told or (damage, file) == (Path.unlink, "manifest.json")  # without one the folder may be anything
    for name in (file, told and told[1]):
        (folder / (name or file)).unlink(missing_ok=True)
    small(folder)
    assert contents(folder) == contents(cache)
    reading(folder)


@pytest.mark.parametrize("state", [lambda folder: None, interrupted])
@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("file", ["shards/000001.json", "second/train/chunk-000001.bin"])
def test_damage_between_two_harvests_is_named_by_the_second(file, damage, state, folder, cache):
    state(folder)
    whole = (folder / file).read_bytes()
    damage(folder / file)
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"is damaged: {re.escape(file)} .*Delete it"):
        small(folder)
    assert contents(folder) == before
    (folder / file).write_bytes(whole)
    assert contents(small(folder)) == contents(cache)


def test_a_missing_chunk_is_named(folder):
    (folder / FILES[3]).unlink()
    with pytest.raises(ValueError, match=rf"{FILES[3]} is missing\. Delete it with shards/000001\.json"):
        small(folder)


def test_damaged_indices_are_written_again(folder, cache):
    flip(folder / "first/train/index.json")
    (folder / "first/val/index.json").write_bytes(b"")
    (folder / "second/val/index.json").unlink()
    assert contents(small(folder)) == contents(cache)


def test_what_a_killed_harvest_left_is_removed(folder, cache):
    interrupted(folder)
    (folder / ".work-000004/first/train").mkdir(parents=True)
    (folder / ".work-000004/first/train/chunk-0-0.bin").write_bytes(b"x")
    (folder / ".work-000009").mkdir()
    (folder / "first/train/chunk-000077.bin").write_bytes(b"x")  # without a record: its harvest was killed
    (folder / "first/train/chunk-000004.bin").write_bytes(b"x")
    for name in (".manifest.json.tmp", "shards/.000088.json.tmp", "first/train/.index.json.tmp"):
        (folder / name).write_bytes(b"x")
    assert contents(small(folder)) == contents(cache)


def part(record, split="train"):
    return next(part for part in record["parts"] if part["split"] == split)


HOSTILE = [
    (lambda r: part(r).update(file="../../outside"), "file must be that of a chunk in first/train"),
    (lambda r: part(r).update(file="/etc/passwd"), "file must be that of a chunk in first/train"),
    (lambda r: part(r).update(file="first/train/chunk-000000.bin"), r"file must be of shard 1"),
    (lambda r: part(r).update(layer="../.."), "parts must be of the layers and splits"),
    (lambda r: r["parts"].append(r["parts"][0]), "parts must be of the layers and splits"),
    (lambda r: r["parts"].pop(), "parts must be of the layers and splits"),
    (lambda r: part(r).update(split="../.."), "split must be one of"),
    (lambda r: part(r).update(split=[]), "split must be one of"),
    (lambda r: part(r).update(d_in=10**9), r"rows must be at most 4294967295 bytes"),
    (lambda r: part(r).update(d_in=5), r"bytes must be \d+, by rows, d_in and dtype"),
    (lambda r: part(r).update(rows=[10**12]), "rows must be blocks of 1024"),
    (lambda r: part(r).update(sum=None), "sum must be of length 4"),
    (lambda r: part(r)["sum"].pop(), "sum must be of length 4"),
    (lambda r: part(r)["sum"].__setitem__(0, "x"), r"sum\[0\] must be a finite float"),
    (lambda r: r["counts"].pop("train"), "parts must be of the layers and splits"),
    (lambda r: r["counts"]["train"].append(0), r"counts\.train must be of length 4"),
    (lambda r: r["counts"]["train"].__setitem__(0, 7), "rows must be"),
    (lambda r: r.update(counts={"more": [0] * 4}), "counts must be one of"),
    (lambda r: r.update(shard=2), "shard must be 1"),
    (lambda r: r.update(cache="0" * 64), "cache must be that of this harvest"),
    (lambda r: r.update(tokens=-1), "tokens must be an integer of at least 0"),
    (lambda r: r.update(more=1), "the file must be a mapping with the keys"),
    (lambda r: r.pop("parts"), "the file must be a mapping with the keys"),
]


@pytest.mark.parametrize("i", range(len(HOSTILE)))
def test_a_forged_record_is_refused_with_the_place(i, folder):
    change, message = HOSTILE[i]
    forged(folder / "shards/000001.json", lambda record: change(record) and None)
    with pytest.raises(ValueError, match=rf"shards/000001\.json is not valid \(.*{message}"):
        small(folder)


def test_a_forged_record_deletes_nothing_outside_the_folder(cache, tmp_path):
    """Records behind the last shard are removed with their chunks."""
    limited = small(tmp_path / "cache", max_samples=60)
    (tmp_path / "outside").write_text("precious")
    behind = shutil.copy(limited / "shards/000000.json", limited / "shards/000077.json")

    def point_outside(record):
        record["shard"] = 77
        for entry in record["parts"]:
            entry["file"] = "../outside"

    forged(Path(behind), point_outside)
    with pytest.raises(ValueError, match=r"shards/000077\.json is not valid"):
        small(limited, max_samples=60)
    assert (tmp_path / "outside").read_text() == "precious"


def test_records_of_another_shard_or_cache_are_refused(folder, tmp_path):
    whole = (folder / "shards/000001.json").read_bytes()
    shutil.copy(folder / "shards/000002.json", folder / "shards/000001.json")
    with pytest.raises(ValueError, match=r"shards/000001\.json .*shard must be 1, but is 2"):
        small(folder)
    (folder / "shards/000001.json").write_bytes(whole)
    other = small(tmp_path / "other", seed=1)
    for path in [*other.rglob("chunk-000001.bin"), other / "shards/000001.json"]:
        shutil.copy(path, folder / path.relative_to(other))
    with pytest.raises(ValueError, match=r"shards/000001\.json .*cache must be that of this harvest"):
        small(folder)
    (folder / "manifest.json").unlink()  # nor without the manifest
    with pytest.raises(ValueError, match=r"shards/000001\.json .*cache must be that of this harvest"):
        small(folder)


def test_other_names_of_the_concepts_are_another_configuration(folder, monkeypatch):
    source = Numbers(60, 20)
    source.concept_names = ["c", "b", "a"]
    with pytest.raises(ValueError, match=r"another configuration \(concept_names was \['a', 'b', 'c'\], now"):
        harvest(folder, source)


@pytest.mark.parametrize(
    "name",
    [
        "letter.txt",
        "first/letter.txt",
        "first/train/more/chunk-000001.bin",
        "first/train/CHUNK-000001.BIN",
        "first/train/chunk-1.bin",
        "first/Train/chunk-000001.bin",
        "First/train/chunk-000001.bin",
        "third/train/chunk-000001.bin",
        "third/val/index.json",
        "Shards/000001.json",
        "shards/0000001.json",
        "Manifest.json",
    ],
)
def test_a_file_that_no_harvest_writes_stops_it_and_is_named(name, folder):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("precious")
    message = rf"output must be a new folder or a cache, but .* holds other files, such as '{re.escape(name)}'"
    with pytest.raises(ValueError, match=message):
        small(folder)
    if name.rpartition("/")[0] not in ("First/train", "third/train", "third/val"):
        with pytest.raises(ValueError, match=rf"holds more than a cache, such as '{re.escape(name)}'"):
            delete_cache(folder)
    assert (folder / name).read_text() == "precious"


def test_hidden_files_are_left_alone(folder, cache):
    (folder / ".git").mkdir()
    for name in (".DS_Store", ".git/config", ".git/.x.tmp"):
        (folder / name).write_text("precious")
    assert contents(small(folder)).items() > contents(cache).items()
    assert (folder / ".DS_Store").read_text() == (folder / ".git/config").read_text() == "precious"
    with pytest.raises(ValueError, match=r"holds more than a cache, such as '\.DS_Store', so it is not deleted"):
        delete_cache(folder)


def test_a_cache_is_deleted_as_a_whole(folder):
    (folder / ".manifest.json.tmp").write_bytes(b"x")
    delete_cache(folder)
    assert not folder.exists()
    folder.mkdir()
    with pytest.raises(ValueError, match=r"holds no cache \(no manifest\.json\), so it is not deleted"):
        delete_cache(folder)


@pytest.mark.parametrize(
    "name", ["first/train", "first", "shards", *FILES, ".manifest.json.tmp", "shards/.000001.json.tmp"]
)
def test_links_are_not_written_through(name, folder, cache, tmp_path):
    outside = tmp_path / "outside"
    if (folder / name).exists():
        shutil.move(folder / name, outside)
    else:
        outside.write_text("precious")
    (folder / name).symlink_to(outside)
    before = contents(outside) if outside.is_dir() else outside.read_bytes()
    if name in ("first/train/index.json", ".manifest.json.tmp", "shards/.000001.json.tmp"):  # written by every harvest
        assert contents(small(folder)) == contents(cache)
        assert not any(path.is_symlink() for path in folder.rglob("*"))
    else:
        with pytest.raises(ValueError, match=re.escape(name)):
            small(folder)
    assert (contents(outside) if outside.is_dir() else outside.read_bytes()) == before


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["x", "X"], r"config\.layers must be names that differ by more than their case"),
        (["shards"], r"config\.layers must be names that folders of a cache can have, but is 'shards'"),
        (["a/b"], r"config\.layers must be names that folders of a cache can have, but is 'a/b'"),
        ([".."], r"config\.layers must be names that folders of a cache can have"),
    ],
)
def test_layers_that_no_folders_can_be_called_are_refused_before_anything_is_written(names, message, tmp_path):
    reader = WindowReader(WordHost(), Numbers(60, 20), ["first"], window_size=12)
    reader.layers = names
    with pytest.raises(ValueError, match=message):
        Harvest(reader, tmp_path / "cache")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_labels_without_a_concept_and_concepts_of_one_name_are_refused(tmp_path):
    source = Numbers(60, 20)
    source.concept_names = ["a", "b"]
    with pytest.raises(ValueError, match="a window holds concepts from 0 to 2, but there are 2 concepts"):
        harvest(tmp_path / "cache", source)
    source.concept_names = ["a", "b", "b"]
    with pytest.raises(ValueError, match="concept_names must be distinct"):
        harvest(tmp_path / "new", source)


def test_a_killed_removal_of_what_lies_behind_ends_well(tmp_path, monkeypatch):
    """Two devices may write more shards than are needed; the others are removed, which may be interrupted too."""
    limited = small(tmp_path / "cache", max_samples=60)
    expected = contents(limited)
    whole = small(tmp_path / "whole")
    unlink = os.unlink
    for n in range(1, 6):
        for shard in ("000003", "000004"):
            reader = WindowReader(WordHost(), Numbers(60, 20), ["first", "second"], window_size=12)
            reader.host.init_args["delay"] = 0.0
            writer = Harvest(reader, limited, 60).writer
            prepared = reader.prepare(int(shard))
            facts = {"examples": len(prepared.indices), "tokens": prepared.n_tokens, "skipped": [], "unaligned": 0}
            writer.write(int(shard), reader.read(prepared), **facts)
        calls = []

        def stop(path, *args, calls=calls, n=n, **kwargs):
            calls.append(path)
            if len(calls) == n:
                raise KeyboardInterrupt
            unlink(path, *args, **kwargs)

        monkeypatch.setattr(os, "unlink", stop)
        with pytest.raises(KeyboardInterrupt):
            small(limited, max_samples=60)
        monkeypatch.undo()
        assert contents(small(limited, max_samples=60)) == expected
    assert len(contents(whole)) > len(expected)


def test_the_first_manifest_of_a_harvest_is_valid(tmp_path):
    reader = WindowReader(WordHost(), Numbers(60, 20), ["first"], window_size=12)
    Harvest(reader, tmp_path / "cache")
    manifest = read_manifest(tmp_path / "cache")
    assert (manifest["complete"], manifest["layers"], manifest["shards"]) == (False, {}, [])
