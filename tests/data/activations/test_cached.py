"""Training from a cache: every activation once an epoch, in a new order, resumed exactly, and damage refused."""

import json
import random
import re
import shutil
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sae_lightning.data import CachedDataModule
from sae_lightning.data.activations.cached import BlockOrder
from tests.helpers.activations import N_WORDS, Numbers, NumberStream, expected, forged, harvest, in_order
from tests.helpers.runs import contents

pytest.importorskip("litdata")
N = 3000


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return harvest(tmp_path_factory.mktemp("cache") / "cache", Numbers(N, 300), window_size=1500)


def data(cache, layer="first", **changes):
    module = CachedDataModule(str(cache), layer, **{"batch_size": 64, "eval_batch_size": 100, "seed": 0, **changes})
    module.setup()
    return module


def epoch(loader):
    return [batch.activations for batch in loader]


def test_an_epoch_holds_every_training_activation_once_but_for_an_unfilled_batch(cache):
    module = data(cache)
    batches = epoch(module.train_dataloader())
    n = json.loads((cache / "manifest.json").read_text())["samples"]["train"]
    assert len(batches) == n // 64
    assert all(batch.shape == (64, 4) and batch.dtype == torch.float32 for batch in batches)
    seen = torch.cat(batches)
    assert len(seen.unique(dim=0)) == len(seen)
    held_out = torch.cat([module.split("val").activations, module.split("test").activations])
    everything = torch.cat([seen, held_out])
    assert len(everything.unique(dim=0)) == len(everything) >= len(expected(N)) - 63
    whole = set(map(tuple, expected(N).tolist()))
    assert set(map(tuple, everything.tolist())) <= whole


def test_concepts_belong_to_their_activations(cache):
    for batch in data(cache).train_dataloader():
        number, word = batch.activations[:, 0] // 100, batch.activations[:, 0] % 100
        assert torch.equal(batch.concepts, ((number + word) % 3).long())


def test_every_epoch_has_an_order_of_its_own_that_the_seed_decides(cache):
    loader = data(cache).train_dataloader()
    first, second = epoch(loader), epoch(loader)
    assert not torch.equal(first[0], second[0])
    again = epoch(data(cache).train_dataloader())
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(epoch(data(cache, seed=1).train_dataloader())[0], first[0])


@pytest.mark.parametrize("stop", [1, 40, 150])
def test_reading_goes_on_with_the_next_batch(cache, stop):
    loader = data(cache).train_dataloader()
    everything = epoch(loader) + epoch(loader)
    first = data(cache).train_dataloader()
    read = []
    while len(read) < stop:
        for batch in first:
            read.append(batch.activations)
            if len(read) == stop:
                break
    resumed = data(cache).train_dataloader()
    resumed.load_state_dict(first.state_dict())
    rest = iter(resumed)
    for wanted in everything[stop : stop + 5]:
        assert torch.equal(next(rest).activations, wanted)


def test_batches_of_ranks_are_disjoint_and_together_those_of_one_process():
    sizes = [10, 7, 10, 3, 10, 9]
    whole = list(BlockOrder(sizes, 8, 0, 1, seed=3))
    ranks = [list(BlockOrder(sizes, 4, rank, 2, seed=3)) for rank in range(2)]

    def rows(batch):
        return [(block, row) for block, begin, end in batch for row in range(begin, end)]

    assert [rows(batch) for batch in whole] == [rows(a) + rows(b) for a, b in zip(*ranks, strict=True)]
    every = [row for batch in whole for row in rows(batch)]
    assert len(set(every)) == len(every) == sum(sizes) // 8 * 8


def test_worker_processes_change_nothing(cache):
    assert all(
        torch.equal(a, b)
        for a, b in zip(
            epoch(data(cache).train_dataloader()), epoch(data(cache, num_workers=1).train_dataloader()), strict=True
        )
    )


def test_held_out_splits_may_be_cut(cache):
    module = data(cache, n_val=150, n_test=50)
    assert (len(module.split("val")), len(module.split("test"))) == (150, 50)
    whole = data(cache).split("val")
    assert torch.equal(module.split("val").activations, whole.activations[:150])
    assert [len(batch.activations) for batch in module.val_dataloader()] == [100, 50]


def test_layers_of_one_cache_have_the_same_order(cache):
    first, second = (epoch(data(cache, layer).train_dataloader())[3] for layer in ("first", "second"))
    assert torch.equal(2 * first, second)
    assert data(cache, "second").d_in == 4
    assert data(cache, "second").concept_names == ["a", "b", "c"]


def test_half_precision_is_read_as_float32(tmp_path):
    folder = harvest(tmp_path / "cache", Numbers(200), ["first"], dtype="bfloat16")
    module = data(folder, None, batch_size=16)
    everything = [batch.activations for batch in module.train_dataloader()]
    everything += [module.split(split).activations for split in ("val", "test")]
    found = in_order(torch.cat(everything))
    assert found.dtype == torch.float32
    known = set(map(tuple, expected(200).bfloat16().float().tolist()))
    assert set(map(tuple, found.tolist())) <= known


def test_contexts_come_from_the_source(cache):
    module = data(cache, source=Numbers(N, 300))
    contexts = module.contexts("test", [0, 17])
    for position, context in zip([0, 17], contexts, strict=True):
        number = module.split("test").activations[position, 0].item() // 100
        whole = context.before + context.token + context.after
        assert whole == " ".join(str(int(x)) for x in (number, *range(1 + int(number) % N_WORDS)))
    streamed = data(cache, source=NumberStream(N, 300))
    assert streamed.contexts("test", [17, 0, 17]) == [contexts[1], contexts[0], contexts[1]]
    with pytest.raises(ValueError, match=r"to show examples of tests\.helpers.*, which is not one of this package's"):
        data(cache).contexts("test", [0])


def test_a_cache_may_lie_where_it_has_to_be_downloaded_from(cache, tmp_path):
    folder = tmp_path / uuid.uuid4().hex  # litdata keeps what it downloads, by address
    shutil.copytree(cache, folder)
    remote = data(f"local:{folder}")
    here = data(cache)
    assert all(
        torch.equal(a, b) for a, b in zip(epoch(remote.train_dataloader()), epoch(here.train_dataloader()), strict=True)
    )
    assert torch.equal(remote.split("test").activations, here.split("test").activations)
    with pytest.raises(ValueError, match="cache must be a folder that"):
        data(f"local:{tmp_path}/nothing")


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return harvest(tmp_path_factory.mktemp("cache") / "cache", Numbers(60, 20))


@pytest.fixture
def folder(small, tmp_path):
    """A cache to be damaged; litdata keeps what it downloads, by address."""
    return Path(shutil.copytree(small, tmp_path / uuid.uuid4().hex))


def read(cache, layers=("first", "second"), **changes):
    """All that training, validation, test and the page read of a cache."""
    found = []
    for layer in layers:
        module = data(cache, layer, batch_size=16, source=Numbers(60, 20), **changes)
        found += [value for batch in module.train_dataloader() for value in batch[:2]]
        for split in ("train", "val", "test"):
            found += list(module.split(split)[:][:2])
            module.contexts(split, list(range(len(module.split(split)))))
    return found


@contextmanager
def flipped(path, bit):
    content = path.read_bytes()
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    path.write_bytes(changed)
    yield
    path.write_bytes(content)


def flips(folder, n, among=""):
    """Bits of files: half of them with every file as likely, half with every bit as likely."""
    generator = random.Random(0)
    sizes = {path: 8 * path.stat().st_size for path in sorted(folder.rglob(f"*{among}")) if path.is_file()}
    chosen = [
        *generator.choices(list(sizes), k=n // 2),
        *generator.choices(list(sizes), list(sizes.values()), k=n // 2),
    ]
    return [(path, generator.randrange(sizes[path])) for path in chosen]


def test_one_bit_changed_anywhere_is_refused_with_the_files_name(folder):
    before = contents(folder)
    assert {path.suffix for path, _ in flips(folder, 400)} == {".json", ".bin"}
    for path, bit in flips(folder, 400):
        name = str(path.relative_to(folder))
        with flipped(path, bit):
            with pytest.raises(ValueError, match=re.escape(name)):
                read(folder)
            if path.name == "index.json":  # written again
                harvest(folder, Numbers(60, 20))
                assert contents(folder) == before
            else:
                with pytest.raises(ValueError, match=re.escape(name)):
                    harvest(folder, Numbers(60, 20))
    read(folder)
    assert contents(folder) == before


def test_one_bit_changed_in_a_small_file_is_refused_also_where_activations_are_not_verified(folder):
    for path, bit in flips(folder, 100, ".json"):
        with flipped(path, bit), pytest.raises(ValueError, match=re.escape(str(path.relative_to(folder)))):
            read(folder, verify=False)
    assert read(folder, verify=False)


@pytest.fixture
def downloads(tmp_path, monkeypatch):
    """Where litdata keeps what it downloads, by address."""
    monkeypatch.setattr("litdata.utilities.dataset_utilities._LITDATA_CACHE_DIR", str(tmp_path / "downloads"))
    return tmp_path / "downloads"


def test_one_bit_changed_in_what_is_read_of_an_object_store_is_refused_or_changes_nothing(folder, downloads):
    """Records are not read, and the number of items in a chunk and similar numbers have no meaning."""
    expected = read(f"local:{folder}")
    harmless = {"records": 0, "chunks": 0}
    for path, bit in flips(folder, 120):
        shutil.rmtree(downloads, ignore_errors=True)
        with flipped(path, bit):
            try:
                found = read(f"local:{folder}")
            except ValueError as error:
                assert str(path.relative_to(folder)) in str(error)  # noqa: PT017  (it need not be raised)
            else:
                assert path.name not in ("manifest.json", "index.json")
                assert all(map(torch.equal, found, expected))
                harmless["records" if path.suffix == ".json" else "chunks"] += 1
    assert harmless["chunks"] < 10


def test_a_damaged_copy_of_what_was_downloaded_is_refused(folder, downloads):
    read(f"local:{folder}")
    for path in downloads.rglob("chunk-*.bin"):
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    with pytest.raises(ValueError, match=r"chunk-\d+\.bin .*\. Delete litdata's local copies of the cache"):
        read(f"local:{folder}")


def test_files_that_are_missing_empty_or_cut_are_named(folder):
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, content = str(path.relative_to(folder)), path.read_bytes()
        for damage in (b"", content[:-1], content + b"\0", None):
            if damage is None:
                path.unlink()
            else:
                path.write_bytes(damage)
            with pytest.raises(ValueError, match=re.escape(name)):
                read(folder, verify=False)
            path.write_bytes(content)
    assert read(folder)


def test_files_that_changed_places_are_named(folder):
    pairs = [
        ("first/train/chunk-000000.bin", "first/train/chunk-000001.bin"),
        ("first/train/chunk-000000.bin", "first/val/chunk-000000.bin"),
        ("first/train/chunk-000000.bin", "second/train/chunk-000000.bin"),
        ("first/train/index.json", "first/val/index.json"),
        ("shards/000000.json", "shards/000001.json"),
        ("manifest.json", "shards/000001.json"),
    ]
    for one, other in pairs:
        assert (folder / one).read_bytes() != (folder / other).read_bytes()
        for source, target in ((one, other), (other, one)):
            content = (folder / target).read_bytes()
            shutil.copy(folder / source, folder / target)
            with pytest.raises(ValueError, match=re.escape(target)):
                read(folder)
            (folder / target).write_bytes(content)
    assert read(folder)


def test_files_of_another_cache_are_named(folder, tmp_path):
    other = harvest(tmp_path / "other", Numbers(60, 20), seed=1)
    for name in ("first/train/chunk-000000.bin", "first/train/index.json", "shards/000000.json"):
        content = (folder / name).read_bytes()
        shutil.copy(other / name, folder / name)
        with pytest.raises(ValueError, match=re.escape(name)):
            read(folder)
        (folder / name).write_bytes(content)
    shutil.copy(other / "manifest.json", folder / "manifest.json")
    with pytest.raises(ValueError, match="is damaged"):
        read(folder)


@pytest.mark.parametrize(
    "name",
    [
        "letter.txt",
        "first/letter.txt",
        "first/train/chunk-000099.bin",
        "first/train/CHUNK-000000.BIN",
        "First/train/chunk-000000.bin",
        "first/more/index.json",
        "third/train/index.json",
        "shards/000099.json",
        "Manifest.json",
    ],
)
def test_a_file_that_was_not_written_is_named(name, folder):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=rf"{re.escape(name)} was not written by the harvest"):
        read(folder)
    (folder / name).unlink()
    (folder / ".DS_Store").write_bytes(b"x")
    assert read(folder)


@pytest.mark.parametrize("name", ["first/train/chunk-000000.bin", "first/train", "shards", "manifest.json"])
def test_links_are_refused_with_their_name(name, folder, tmp_path):
    shutil.move(folder / name, tmp_path / "outside")
    (folder / name).symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match=name):
        read(folder)


INDEX = {
    "another kind": lambda index: index["config"]["data_format"].__setitem__(0, "pickle"),
    "compression": lambda index: index["config"].update(compression="zstd"),
    "encryption": lambda index: index["config"].update(encryption={"algorithm": "fernet", "level": "chunk"}),
    "item loader": lambda index: index["config"].update(item_loader="TokensLoader"),
    "format": lambda index: index["config"].update(format="mds"),
    "bytes": lambda index: index["chunks"][0].update(chunk_bytes=10**12),
    "size": lambda index: index["chunks"][0].update(chunk_size=10**12),
    "dim": lambda index: index["chunks"][0].update(dim=10**12),
    "file outside": lambda index: index["chunks"][0].update(filename="../../../x"),
    "chunk twice": lambda index: index["chunks"].append(index["chunks"][0]),
    "no chunks": lambda index: index["chunks"].clear(),
    "folder outside": lambda index: index.update(updated_at="../../x"),
}


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize("change", INDEX)
def test_an_index_that_says_anything_else_is_refused(change, remote, folder):
    path = folder / "first/train/index.json"
    index = json.loads(path.read_text())
    INDEX[change](index)
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"first/train/index\.json differs from the one that was written"):
        read(f"local:{folder}" if remote else folder)


def test_labels_outside_the_concepts_are_refused_although_all_checksums_are_right(folder):
    """A forger leaves a concept out, in the manifest alone: the labels are still in the chunks."""

    def fewer(manifest):
        manifest["concept_names"] = ["a", "b"]
        for split, counts in manifest["concepts"].items():
            manifest["unlabelled"][split] += counts.pop("c")

    forged(folder / "manifest.json", fewer)
    for changes in ({}, {"num_workers": 1}):
        with pytest.raises(ValueError, match=r"first/train/chunk-\d+\.bin holds concepts from 0 to 2, but there are 2"):
            read(folder, **changes)


def test_files_are_checked_also_where_nobody_calls_setup(folder):
    path = folder / "first/val/index.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match=r"first/val/index\.json"):
        CachedDataModule(str(folder), "first", seed=0).split("train")


def test_a_cache_in_an_object_store_that_was_harvested_again_is_read_as_it_is_now(folder, tmp_path):
    """litdata keeps indices by address."""
    before = read(f"local:{folder}", layers=["first"])
    shutil.rmtree(folder)
    harvest(folder, Numbers(60, 20), seed=1)
    after = read(f"local:{folder}", layers=["first"])
    assert all(map(torch.equal, after, read(folder, layers=["first"])))
    assert not all(map(torch.equal, after, before))


def test_one_damaged_layer_leaves_the_other_usable(cache, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    chunk = folder / "first" / "train" / "chunk-000001.bin"
    content = bytearray(chunk.read_bytes())
    content[len(content) // 2] ^= 1
    chunk.write_bytes(content)
    with pytest.raises(
        ValueError, match=r"first/train/chunk-000001\.bin has another checksum .* Delete it with shards/000001\.json"
    ):
        data(folder)
    data(folder, "second")  # that one is whole
    data(folder, verify=False)  # as asked for
    chunk.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"has \d+ bytes instead of \d+"):
        data(folder, verify=False)
    chunk.unlink()
    with pytest.raises(ValueError, match="is missing"):
        data(folder)
    (folder / "shards" / "000001.json").unlink()
    harvest(folder, Numbers(N, 300), window_size=1500)
    data(folder)


def test_an_interrupted_harvest_is_refused_unless_asked_for(cache, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    forged(folder / "manifest.json", lambda manifest: {**manifest, "complete": False})
    with pytest.raises(ValueError, match=r"cache must be complete, but the harvest of .* was interrupted"):
        data(folder)
    assert data(folder, allow_incomplete=True).d_in == 4


def test_wrong_arguments(cache, tmp_path):
    for changes, message in [
        ({"layer": "third"}, r"layer must be one of those in .*, \['first', 'second'\], but is 'third'"),
        ({"layer": None}, "layer must be one of those in .* but is None"),
        ({"model": "bert"}, "cache must be of the model 'bert', but .* is of None"),
        ({"n_val": 0}, "n_val must be at least 1, but is 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, but is -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            data(cache, **changes)
    with pytest.raises(ValueError, match="cache must be a folder that `sae-lightning harvest` wrote"):
        data(tmp_path)
    with pytest.raises(ValueError, match=r"training split must hold at least one batch .* = 100000 samples"):
        data(cache, batch_size=100_000).train_dataloader()
    one = harvest(tmp_path / "one", Numbers(20, 1))
    with pytest.raises(ValueError, match=r"every split must hold an activation, but '.*' of .* holds none"):
        data(one)
