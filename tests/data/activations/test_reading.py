"""Windows: everything is read once, mixed, split by document, and depends on nothing but the window's number."""

import pytest
import torch

from sae_lightning.data.activations.reading import WindowReader
from sae_lightning.data.sources import UnreadableError
from tests.helpers.activations import Numbers, NumberStream, WordHost, expected, in_order


def reader(source=None, layers=("first",), **changes):
    return WindowReader(
        WordHost(), Numbers() if source is None else source, list(layers), **{"window_size": 30, **changes}
    )


def windows(reading):
    found, window = [], 0
    while (prepared := reading.prepare(window)) is not None:
        found.append(reading.read(prepared))
        window += 1
    return found


def joined(found, layer="first"):
    return torch.cat([read.activations[layer] for window in found for read in window.values()])


@pytest.mark.parametrize("source", [Numbers(), NumberStream()])
def test_every_activation_is_read_once(source):
    reading = reader(source, ["first", "second"])
    found = windows(reading)
    assert len(found) == 4
    assert reading.n_windows == (4 if isinstance(source, Numbers) else None)
    for layer in ("first", "second"):
        assert torch.equal(in_order(joined(found, layer)), expected(100, layer))


def test_labels_travel_with_the_activations():
    for window in windows(reader()):
        for read in window.values():
            number, word = read.activations["first"][:, 0] // 100, read.activations["first"][:, 0] % 100
            assert torch.equal(read.examples, number.long())
            assert torch.equal(read.concepts, ((number + word) % 3).long())
            assert torch.equal(read.starts, word.int())
            assert torch.equal(read.ends, word.int() + 1)


def test_documents_fall_into_one_split_each():
    documents = {}
    for window in windows(reader(Numbers(2000, 200), window_size=500, val_fraction=0.2, test_fraction=0.1)):
        for split, read in window.items():
            documents.setdefault(split, set()).update((read.examples % 200).tolist())
    assert not documents["train"] & documents["val"]
    assert not documents["test"] & (documents["train"] | documents["val"])
    assert sum(len(names) for names in documents.values()) == 200
    assert 25 <= len(documents["val"]) <= 55  # 40 are expected, with a standard deviation of 5.7
    assert 8 <= len(documents["test"]) <= 35


def test_a_window_depends_on_its_number_and_the_seed_alone():
    reading = reader()
    later = reading.read(reading.prepare(2))
    again = reader(batch_size=7)
    first = again.read(again.prepare(2))
    for split, read in later.items():
        assert torch.equal(read.activations["first"], first[split].activations["first"])
    other = reader(seed=1)
    assert other.read(other.prepare(2)).keys() != later.keys() or not torch.equal(
        other.read(other.prepare(2))["train"].examples, later["train"].examples
    )


def test_a_window_is_mixed():
    reading = reader(Numbers(300, 100), window_size=300)
    examples = reading.read(reading.prepare(0))["train"].examples
    neighbours = (examples[1:] == examples[:-1]).float().mean()
    assert neighbours < 0.05
    assert not torch.equal(examples.unique_consecutive(), examples.sort().values.unique_consecutive())


def test_batches_hold_pieces_of_one_length_and_no_more_than_they_may():
    prepared = reader(batch_size=12, window_size=100).prepare(0)
    assert sum(len(batch) for batch in prepared.batches) == 100
    for batch in prepared.batches:
        assert len(batch) * max(piece.length for piece in batch) <= 12
    lengths = [piece.length for batch in prepared.batches for piece in batch]
    assert lengths == sorted(lengths)
    assert prepared.n_tokens == sum(lengths)
    assert len(reader(batch_size=1, window_size=100).prepare(0).batches) == 100  # longer ones go alone


def test_only_some_concepts_may_be_kept():
    found = windows(reader(keep=["c", "a"]))
    concepts = torch.cat([read.concepts for window in found for read in window.values()])
    everything = torch.cat([read.concepts for window in windows(reader()) for read in window.values()])
    assert sorted(concepts.tolist()) == sorted(everything[everything != 1].tolist())


def test_one_split_may_be_prepared_without_the_others():
    reading = reader()
    whole, part = reading.read(reading.prepare(1)), reading.read(reading.prepare(1, only="val"))
    assert part.keys() == {"val"}
    assert torch.equal(part["val"].activations["first"], whole["val"].activations["first"])


def test_unreadable_examples_are_refused_or_skipped():
    source = Numbers(broken=[3, 50])
    with pytest.raises(UnreadableError, match=r"'broken.*' cannot be read: as the test wants it"):
        windows(reader(source))
    reading = reader(source, unreadable="skip")
    names = [name for window in range(4) for name in reading.prepare(window).skipped]
    assert sorted(names) == ["broken3", "broken50"]
    assert len(joined(windows(reading))) == len(expected(100)) - 4 - 1


def test_activations_that_a_type_cannot_hold_are_refused():
    reading = reader(Numbers(800, 20), dtype="float16", window_size=800)
    with pytest.raises(ValueError, match=r"finite in torch.float16, but \d+ of \d+ at 'first' are not .*another dtype"):
        reading.read(reading.prepare(0))
    assert joined(windows(reader(dtype="bfloat16"))).dtype == torch.bfloat16


def test_windows_of_a_source_that_is_through_come_again():
    for source in (Numbers(40), NumberStream(40)):
        reading = reader(source)
        first, again = reading.window(0, "train"), reading.window(2, "train")
        assert torch.equal(first.examples.sort().values, again.examples.sort().values)
        assert not torch.equal(first.examples, again.examples)  # mixed anew
        assert torch.equal(reading.window(1, "train").examples, reading.window(1, "train").examples)


def test_a_split_is_gathered_from_as_many_windows_as_it_needs():
    gathered = reader().gather("train", 100)
    assert len(gathered.concepts) == 100
    everything = reader().gather("train", 10_000)
    assert 100 < len(everything.concepts) < 300
    assert torch.equal(everything.examples[:100], gathered.examples)
    with pytest.raises(ValueError, match="'val' holds none"):
        reader(Numbers(3, 1)).gather("val", 5)


def test_wrong_arguments():
    for changes, message in [
        ({"window_size": 0}, "window_size must be at least 1, but is 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"val_fraction": 1.0}, "val_fraction must be at least 0 and below 1, but is 1.0"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "must leave something for training"),
        ({"keep": ["d"]}, r"keep must name concepts of the source, \['a', 'b', 'c'\], but names 'd'"),
        ({"layers": ["fourth"]}, r"layer must be one of the model's \['first', 'second', 'third'\], but is 'fourth'"),
        ({"source": Numbers(0)}, "source must hold an example"),
    ]:
        with pytest.raises(ValueError, match=message):
            reader(**changes)
