"""Training from a cache: every activation once an epoch, in a new order, resumed exactly, and damage refused."""

import json
import shutil
import uuid

import pytest
import torch

from sae_lightning.data import CachedDataModule
from sae_lightning.data.cached import BlockOrder
from tests.data.harvesting import N_WORDS, Numbers, NumberStream, expected, in_order
from tests.data.test_harvest import harvest

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
    with pytest.raises(ValueError, match=r"to show examples of tests\.data.*, which is none of this package's"):
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


def test_damage_is_named_and_refused(cache, tmp_path):
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
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
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
