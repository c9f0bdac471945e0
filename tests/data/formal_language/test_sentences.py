"""Sentences in rows, and as data of a language model."""

import pytest
import torch

from sae_lightning.data import SentenceDataModule
from sae_lightning.data.formal_language.grammar import BEGIN, END, PAD
from sae_lightning.data.formal_language.sentences import pack
from tests.helpers.language import ENGLISH, sentences


def unpacked(batch):
    """The sentences of a batch, read off its rows."""
    found = {}
    for tokens, segments in zip(batch.tokens.tolist(), batch.segments.tolist(), strict=True):
        for token, segment in zip(tokens, segments, strict=True):
            if segment >= 0:
                found.setdefault(segment, []).append(token)
    return [found[i] for i in sorted(found)]


def test_rows_hold_every_sentence_whole_and_in_order():
    drawn = sentences()
    batch = pack(drawn, 21)
    wanted = [[BEGIN, *tokens.tolist()] for tokens in drawn.tokens.split(drawn.lengths().tolist())]
    assert unpacked(batch) == wanted
    assert batch.tokens.shape[1] == 21
    assert len(batch.tokens) < 30  # several in a row
    # each in one row, at consecutive places
    for segment, tokens in enumerate(wanted):
        rows, places = (batch.segments == segment).nonzero().T
        assert rows.unique().numel() == 1
        assert places.tolist() == list(range(int(places[0]), int(places[0]) + len(tokens)))
        assert batch.positions[rows, places].tolist() == list(range(len(tokens)))
        assert batch.targets[rows, places].tolist() == [*tokens[1:], END]
    filling = batch.segments == -1
    assert (batch.tokens[filling] == PAD).all()
    assert (batch.targets[filling] == PAD).all()


def test_a_sentence_that_does_not_fit_is_refused():
    drawn = sentences(max_length=20)
    longest = int(drawn.lengths().max())
    with pytest.raises(ValueError, match=rf"row_length must be above the {longest} words .*, but is {longest}"):
        pack(drawn, longest)


def data(**changes):
    sizes = {"n_train": 64, "n_val": 30, "n_test": 20, "batch_size": 16, "eval_batch_size": 8, "seed": 1}
    return SentenceDataModule(ENGLISH, **{"max_length": 20, **sizes, **changes})


def test_training_batches_are_endless_and_held_out_ones_are_not():
    module = data()
    epochs = [[unpacked(batch) for batch in module.train_dataloader()] for _ in range(2)]
    assert epochs[0] == epochs[1]  # a new loader starts anew ...
    loader = module.train_dataloader()
    first, second = list(loader), list(loader)
    assert len(first) == len(second) == 4
    assert not torch.equal(first[0].tokens, second[0].tokens)  # ... and one that goes on does not
    for name, n in (("val", 30), ("test", 20)):
        held_out = [s for batch in getattr(module, f"{name}_dataloader")() for s in unpacked(batch)]
        assert held_out == [[BEGIN, *tokens.tolist()] for tokens in module.split(name).sentences]
        assert len(held_out) == n
    val, test = ({tuple(s.tolist()) for s in module.split(name).sentences} for name in ("val", "test"))
    assert val != test


def test_seeds_decide_on_the_sentences():
    draws = [next(iter(data(seed=seed).train_dataloader())).tokens for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1])
    assert draws[0].shape != draws[2].shape or not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_train": 0}, "n_train must be at least 1, but is 0"),
        ({"n_val": -1}, "n_val must be at least 1, but is -1"),
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"max_length": 0}, "max_length must be at least 1, but is 0"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        data(**changes)


def test_training_sentences_are_not_held():
    with pytest.raises(ValueError, match="split must be 'val' or 'test'"):
        data().split("train")
