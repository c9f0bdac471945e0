"""A harvest's files: whole, the same whatever happened on the way, and readable by litdata alone."""

import errno
import itertools
import json
import os
import shutil
import signal
import sys

import pytest
import torch

from sae_lightning.data.activations.cache_files import checksum
from sae_lightning.data.activations.manifest import read_manifest
from sae_lightning.run.files import WriteError
from tests.helpers.activations import Numbers, NumberStream, expected, harvest, in_order, stored
from tests.helpers.runs import contents

litdata = pytest.importorskip("litdata")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return harvest(tmp_path_factory.mktemp("cache") / "cache")


def test_litdata_alone_reads_every_activation_with_its_labels(undisturbed):
    for layer in ("first", "second"):
        activations, concepts, examples, starts, ends = stored(undisturbed, layer)
        assert torch.equal(in_order(activations), expected(100, layer))
        scale = 100 if layer == "first" else 200
        assert torch.equal(examples, (activations[:, 0] // scale).long())
        assert torch.equal(concepts, (examples + starts) % 3)
        assert torch.equal(ends, starts + 1)


def test_the_manifest_says_what_the_cache_holds(undisturbed):
    manifest = read_manifest(undisturbed)
    assert manifest["complete"]
    assert manifest["concept_names"] == ["a", "b", "c"]
    assert (manifest["examples"], manifest["tokens"], manifest["skipped"]) == (100, 300, [])
    assert sum(manifest["samples"].values()) == 300
    assert manifest["config"]["layers"] == ["first", "second"]
    assert manifest["config"]["source"]["init_args"] == {"n": 100, "n_documents": 20, "broken": None}
    _, concepts, *_ = stored(undisturbed)
    totals = {name: sum(manifest["concepts"][split][name] for split in manifest["samples"]) for name in "abc"}
    assert list(totals.values()) == torch.bincount(concepts).tolist()
    train = litdata.StreamingDataset(str(undisturbed / "second" / "train"))
    activations = torch.cat([train[i][0] for i in range(len(train))])
    torch.testing.assert_close(
        torch.tensor(manifest["layers"]["second"]["mean"]), activations.mean(0), rtol=1e-5, atol=0
    )
    assert manifest["layers"]["second"]["d_in"] == 4
    assert len(activations) == manifest["samples"]["train"]


def test_another_harvest_writes_the_same_bytes(undisturbed, tmp_path):
    assert contents(harvest(tmp_path / "cache")) == contents(undisturbed)
    before = contents(undisturbed)
    harvest(undisturbed)  # nothing is left to do
    assert contents(undisturbed) == before


@pytest.mark.slow
def test_a_harvest_in_two_processes_writes_the_same_bytes(undisturbed, tmp_path):
    assert contents(harvest(tmp_path / "cache", devices=["cpu", "cpu"])) == contents(undisturbed)


def test_shards_that_are_missing_are_written_anew(undisturbed, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(undisturbed, folder)
    for shard in ("000002", "000007"):
        (folder / "shards" / f"{shard}.json").unlink()
        for chunk in folder.rglob(f"chunk-{shard}.bin"):
            chunk.unlink()
    assert contents(harvest(folder)) == contents(undisturbed)


def killed(folder, touch):
    """Harvest in a forked process that is killed before it gives its `touch`-th file a name; how it ended."""
    child = os.fork()
    if child == 0:
        replace, calls = os.replace, itertools.count(1)

        def kill_at(source, target):
            if next(calls) == touch:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = kill_at
        with open(os.devnull, "w") as sys.stderr:
            harvest(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_killed_at_each_touch_of_the_disk_it_goes_on_and_ends_with_the_same_bytes(undisturbed, tmp_path):
    for touch in itertools.count(1, 5):
        folder = tmp_path / str(touch)
        code = killed(folder, touch)
        if code == 0:
            break
        assert code == -signal.SIGKILL
        assert not (folder / "manifest.json").is_file() or not read_manifest(folder)["complete"]
        assert contents(harvest(folder)) == contents(undisturbed)
    assert touch > 45


def test_killed_again_and_again_it_ends_with_the_same_bytes(undisturbed, tmp_path):
    codes = []
    while not codes or codes[-1] != 0:
        codes.append(killed(tmp_path / "cache", 11))  # a shard has 7 files at most
        assert len(codes) < 30
    assert codes.count(-signal.SIGKILL) >= 5
    assert contents(tmp_path / "cache") == contents(undisturbed)


@pytest.mark.parametrize("touch", range(6))
def test_a_failure_at_any_touch_of_the_disk_leaves_a_valid_cache_that_goes_on(
    touch, undisturbed, tmp_path, monkeypatch
):
    folder, calls, replace = tmp_path / "cache", [], os.replace

    def fail_once(source, target):
        calls.append(target)
        if len(calls) == 10 + touch:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(WriteError, match=r"the cache cannot be written to .*No space left on device"):
        harvest(folder)
    monkeypatch.undo()
    manifest = read_manifest(folder)
    assert not manifest["complete"]
    assert 0 < sum(manifest["samples"].values()) < 300
    for layer in manifest["layers"].values():
        for chunks in layer["splits"].values():
            for chunk in chunks:
                assert checksum(folder / chunk["file"]) == chunk["sha256"]
    assert contents(harvest(folder)) == contents(undisturbed)


@pytest.mark.slow
def test_a_stream_is_harvested_to_its_end(tmp_path):
    folder = harvest(tmp_path / "cache", NumberStream(50))
    assert torch.equal(in_order(stored(folder)[0]), expected(50))
    two = harvest(tmp_path / "two", NumberStream(50), devices=["cpu", "cpu"])
    assert contents(two) == contents(folder)


@pytest.mark.slow
def test_it_stops_with_the_shard_that_brings_enough(tmp_path):
    folder = harvest(tmp_path / "cache", max_samples=100)
    manifest = read_manifest(folder)
    sizes = [json.loads(path.read_text())["tokens"] for path in sorted(folder.glob("shards/*.json"))]
    assert sum(sizes[:-1]) < 100 <= sum(sizes) == sum(manifest["samples"].values())
    two = harvest(tmp_path / "two", max_samples=100, devices=["cpu", "cpu"])
    assert contents(two) == contents(folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_activations_may_be_stored_in_half_precision(dtype, tmp_path):
    folder = harvest(tmp_path / "cache", Numbers(30), ["first"], dtype=dtype)
    kind = getattr(torch, dtype)
    found = stored(folder, dtype=kind if dtype == "bfloat16" else None)[0]
    assert found.dtype == kind
    assert sorted(found.float().tolist()) == sorted(expected(30).to(kind).float().tolist())


def test_skipped_examples_are_named(tmp_path):
    folder = harvest(tmp_path / "cache", Numbers(broken=[4]), unreadable="skip")
    assert read_manifest(folder)["skipped"] == ["broken4"]


def test_a_folder_of_another_harvest_or_of_other_files_is_refused(undisturbed, tmp_path):
    with pytest.raises(
        ValueError, match=r"another configuration \(layers was \['first', 'second'\], now \['first'\]\)"
    ):
        harvest(undisturbed, layers=["first"])
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"output must be a new folder or a cache, but .* holds other files"):
        harvest(tmp_path)
    with pytest.raises(ValueError, match="max_samples must be at least 1, but is 0"):
        harvest(tmp_path / "new", max_samples=0)
    with pytest.raises(ValueError, match="devices must be devices of this machine, but 'cuda:77' is not available"):
        harvest(tmp_path / "new", devices=["cuda:77"])
