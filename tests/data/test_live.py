"""Activations computed as training goes: each once an epoch of the source, and resumed within a window."""

import pytest
import torch

from sae_lightning.data import LiveDataModule
from sae_lightning.data.live import WindowBatches, WindowSteps
from sae_lightning.data.reading import WindowReader
from tests.data.harvesting import Numbers, NumberStream, WordHost


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
        ValueError, match=r"window_size must give at least a batch of 16 .* but is 2 examples, of which no window"
    ):
        take(data(window_size=2).train_dataloader(), 1)
    with pytest.raises(ValueError, match="split must be 'val' or 'test'"):
        data().split("train")
