"""Activations computed as training goes: each once an epoch of the source, and resumed within a window."""

from functools import cache

import pytest
import torch

from sae_lightning.data import LiveDataModule
from sae_lightning.data.activations.live import WindowBatches, WindowSteps
from sae_lightning.data.activations.reading import WindowReader
from tests.helpers.activations import Numbers, NumberStream, WordHost
from tests.helpers.data import ranked
from tests.helpers.probes import SaveAt
from tests.helpers.trainers import train


def data(source=None, **changes):
    sizes = {"window_size": 100, "batch_size": 16, "n_train": 160, "n_val": 60, "n_test": 50, "seed": 0}
    source = Numbers(600, 100) if source is None else source
    module = LiveDataModule(WordHost(), source, "first", **{**sizes, **changes})
    module.setup()
    return module


def take(loader, n):
    found = []
    while len(found) < n:
        for batch in loader:
            found.append(batch.activations)
            if len(found) == n:
                break
    return found


@pytest.mark.parametrize("source", [Numbers(600, 100), NumberStream(600, 100)])
def test_no_activation_comes_twice_before_the_source_is_through(source):
    module = data(source)
    seen = torch.cat(take(module.train_dataloader(), 75))
    assert len(seen.unique(dim=0)) == len(seen)
    later = torch.cat(take(module.train_dataloader(), 120))  # goes on with the first window
    assert len(later.unique(dim=0)) < len(later)
    held_out = torch.cat([module.split("val").activations, module.split("test").activations])
    assert not set(later[:, 0].tolist()) & set(held_out[:, 0].tolist())
    assert (len(module.split("val")), len(module.split("test"))) == (60, 50)


@pytest.mark.parametrize("stop", [1, 7, 14, 15, 23, 40, 95])
def test_training_goes_on_with_the_next_batch(stop):
    everything = take(data().train_dataloader(), stop + 20)
    first = data().train_dataloader()
    take(first, stop)
    resumed = data().train_dataloader()
    resumed.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(take(resumed, 20), everything[stop:], strict=True))


# -- resuming with other batches or other processes: every window holds 100 examples, so their numbers tell it -------

MANY = Numbers(4000, 100)
LARGE = {"n_train": 1600, "host_batch_size": 4000}


@cache
def order():
    """Numbers of the training activations of each window, in the order in which it is used up."""
    reader = data(MANY, **LARGE)._reader
    return [reader.window(window, "train").activations["first"][:, 0].tolist() for window in range(40)]


@cache
def window_of():
    return {number: window for window, numbers in enumerate(order()) for number in numbers}


def loaders(world_size, **changes):
    return [ranked(data(MANY, **LARGE, **changes), rank, world_size).train_dataloader() for rank in range(world_size)]


def numbers(loader, n):
    """What tells the activations of the next batches apart, batch by batch."""
    return [batch[:, 0].tolist() for batch in take(loader, n)]


def flat(found):
    return [number for batch in found for number in batch]


@pytest.mark.parametrize("stop", [1, 13, 14, 20])
@pytest.mark.parametrize(("before", "after"), [(16, 24), (24, 16), (16, 7), (7, 16), (16, 32), (32, 16), (16, 150)])
def test_with_another_batch_size_training_goes_on_within_the_window_at_the_first_whole_batch_of_new_samples(
    before, after, stop
):
    (first,) = loaders(1, batch_size=before)
    seen = flat(numbers(first, stop))
    (resumed,) = loaders(1, batch_size=after)
    resumed.load_state_dict(first.state_dict())
    found = numbers(resumed, 12)
    assert not set(seen) & set(flat(found))
    assert len(set(flat(found))) == 12 * after
    # by hand: batches of the new size begin at its multiples; that which holds a sample seen is left out
    window = window_of()[seen[-1]]
    done = sum(window_of()[number] == window for number in seen)
    wanted = []
    while len(wanted) < 12:
        whole = [order()[window][at : at + after] for at in range(0, len(order()[window]), after) if at >= done]
        wanted += [batch for batch in whole if len(batch) == after]
        window, done = window + 1, 0
    assert found == wanted[:12]


@pytest.mark.parametrize("stop", [1, 14, 20])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (1, 3), (2, 1), (2, 3), (3, 1), (3, 2)])
@pytest.mark.parametrize("batch_size", [16, 9])
def test_with_other_processes_training_goes_on_behind_all_windows_that_one_had_begun(before, after, stop, batch_size):
    first = loaders(before, batch_size=16)
    seen = flat(flat(numbers(loader, stop) for loader in first))
    states = [loader.state_dict() for loader in first]
    resumed = loaders(after, batch_size=batch_size)
    for loader in resumed:
        loader.load_state_dict({**states[0], "ranks": states})  # as a checkpoint has them
    found = [flat(numbers(loader, 20)) for loader in resumed]
    together = seen + flat(found)
    assert len(set(together)) == len(together)
    begun = max(window_of()[number] for number in seen)
    for rank, own in enumerate(found):
        windows = list(dict.fromkeys(window_of()[number] for number in own))
        assert windows == list(range(begun + 1 + rank, begun + 1 + rank + after * len(windows), after))
        assert own[:batch_size] == order()[begun + 1 + rank][:batch_size]
    assert {loader.state_dict()["position"] for loader in resumed} == {stop + 20}


def test_the_rank_that_is_furthest_decides_where_other_processes_begin():
    first = loaders(3)
    seen = [flat(numbers(loader, stop)) for loader, stop in zip(first, (1, 30, 1), strict=True)]  # windows 0, 1 to 7, 2
    states = [loader.state_dict() for loader in first]
    resumed = loaders(2)
    for loader in resumed:
        loader.load_state_dict({**states[0], "ranks": states})
    begun = max(window_of()[number] for number in seen[1])
    assert begun > 2
    assert [window_of()[numbers(loader, 1)[0][0]] for loader in resumed] == [begun + 1, begun + 2]


def test_the_same_processes_go_on_each_in_its_own_window():
    whole = [numbers(loader, 40) for loader in loaders(2)]
    first, resumed = loaders(2), loaders(2)
    for old, new, everything in zip(first, resumed, whole, strict=True):
        assert numbers(old, 25) == everything[:25]
        new.load_state_dict(old.state_dict())
        assert numbers(new, 15) == everything[25:]


def test_a_run_that_was_resumed_twice_repeats_no_sample():
    (one,) = loaders(1, batch_size=16)
    seen = numbers(one, 8)
    (two,) = loaders(1, batch_size=24)
    two.load_state_dict(one.state_dict())
    seen += numbers(two, 9)
    three = loaders(2, batch_size=10)
    for loader in three:
        loader.load_state_dict({**two.state_dict(), "ranks": [two.state_dict()]})
        seen += numbers(loader, 7)
    four = loaders(2, batch_size=13)
    for before, after in zip(three, four, strict=True):
        after.load_state_dict(before.state_dict())
        seen += numbers(after, 20)
    assert len(set(flat(seen))) == len(flat(seen)) == 8 * 16 + 9 * 24 + 2 * 7 * 10 + 2 * 20 * 13


@pytest.mark.parametrize("step", [60, 100])
def test_a_trainer_goes_on_with_another_batch_size(step, tmp_path):
    """Epochs are of 100 batches before and of 66 afterwards."""
    path = tmp_path / "a.ckpt"
    before = train(step, data(MANY, **LARGE), SaveAt(step, path))[0]
    after, _, trainer = train(step + 70, data(MANY, batch_size=24, **LARGE), ckpt_path=path)
    seen = flat(batch[:, 0].tolist() for batch in [*before, *after])
    assert [len(batch) for batch in after] == [24] * 70
    assert len(set(seen)) == len(seen) == 16 * step + 24 * 70
    assert trainer.train_dataloader.state_dict()["position"] == step + 70


def test_training_on_a_stream_goes_on_where_it_was_behind_the_streams_end():
    stream = NumberStream(600, 100)
    everything = take(data(stream).train_dataloader(), 150)  # the stream has 85 batches at most
    first = data(stream).train_dataloader()
    take(first, 130)
    resumed = data(stream).train_dataloader()
    resumed.load_state_dict(first.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(take(resumed, 20), everything[130:], strict=True))


def test_a_last_window_that_is_too_small_is_passed_over():
    module = data(Numbers(303, 100), n_train=16 * 60)
    assert {window for window, _ in module.train_dataloader().sequence} == {0, 1, 2, 4, 5}  # 3 has three examples


def test_ranks_read_windows_of_their_own():
    def places(rank, world_size, n):
        batches = WindowBatches(WindowReader(WordHost(), Numbers(600, 100), ["first"], 100), 16)
        return list(WindowSteps(batches, n, rank, world_size))

    one = places(0, 1, 60)
    two = [places(rank, 2, 30) for rank in range(2)]
    assert {window for window, _ in two[0]} <= {0, 2, 4}
    assert {window for window, _ in two[1]} <= {1, 3, 5}
    assert set(two[0]) | set(two[1]) <= set(places(0, 1, 90))
    assert len(set(one)) == 60


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_pass_over_windows_of_their_own_that_are_too_small(world_size):
    reader = WindowReader(WordHost(), Numbers(600, 100), ["first"], 10, 4000)
    sizes = [len(reader.window(window, "train").concepts) for window in range(40)]
    most = sorted(sizes)[20]  # half the windows are too small, the first of some ranks too
    for rank in range(world_size):
        places = list(WindowSteps(WindowBatches(reader, most), 4, rank, world_size))
        own = [window for window in range(rank, 40, world_size) if sizes[window] >= most]
        assert places == [(window, 0) for window in own[:4]]
    assert any(sizes[rank] < most for rank in range(3))


def test_an_epoch_that_begins_anew_begins_where_it_should():
    whole = take(data().train_dataloader(), 30)
    anew = data().train_dataloader()
    anew.sequence.set_epoch(2)  # as after a reload of the loader: epochs of 10 batches
    assert torch.equal(next(iter(anew)).activations, whole[20])


def test_contexts_come_from_the_source():
    module = data()
    position = 11
    context = module.contexts("val", [position])[0]
    number = int(module.split("val").activations[position, 0]) // 100
    assert (context.before + context.token + context.after).split()[0] == str(number)


def test_unreadable_examples_are_told(recwarn):
    module = data(Numbers(600, 100, broken=[5]), unreadable="skip")
    take(module.train_dataloader(), 85)
    told = [str(w.message) for w in recwarn if "cannot be read and are skipped: broken5" in str(w.message)]
    assert told


def test_wrong_arguments():
    for changes, message in [
        ({"n_val": 0}, "n_val must be at least 1, but is 0"),
        ({"test_fraction": 0.0}, "test_fraction must be above 0, but is 0.0"),
        ({"window_size": 0}, "window_size must be at least 1"),
        ({"source": Numbers(0)}, "source must hold an example"),
    ]:
        with pytest.raises(ValueError, match=message):
            data(**changes)
    with pytest.raises(ValueError, match="layer must be one of the model's"):
        LiveDataModule(WordHost(), Numbers(), "tenth")
    with pytest.raises(
        ValueError, match=r"window_size must give at least one batch of 16 .* but no window of 2 examples does"
    ):
        take(data(window_size=2).train_dataloader(), 1)
    with pytest.raises(ValueError, match="split must be 'val' or 'test'"):
        data().split("train")
