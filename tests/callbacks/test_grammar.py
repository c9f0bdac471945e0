"""What is said about a language model and its grammar."""

import math

import pytest
import torch

from sae_lightning.callbacks import GrammarReport
from sae_lightning.callbacks.grammar import entropy_floor, share_grammatical
from sae_lightning.data import Grammar
from sae_lightning.data.formal_language.grammar import END
from sae_lightning.data.formal_language.inside import Inside
from sae_lightning.subjects import LanguageModel
from tests.helpers.language import FOLDER, TEXT, TINY, sentence_data
from tests.helpers.trainers import quiet_trainer


def test_the_floor_is_what_knowing_the_grammar_costs():
    # words come with 1/2, sentences end with 3/4 after each; those of more than two words are not there
    grammar = Grammar("S -> A S [0.25] | A [0.75]\nA -> 'a' [0.5] | 'b' [0.5]")
    kept = 0.75 + 0.25 * 0.75
    sentences = [grammar.encode("a"), grammar.encode("b a")]
    wanted = -(math.log(0.5 * 0.75 / kept) + math.log(0.25 * 0.25 * 0.75 / kept)) / (2 + 3)
    assert entropy_floor(Inside(grammar), sentences, 2) == pytest.approx(wanted)


def test_sentences_must_end_and_be_grammatical():
    grammar = Grammar.from_file(FOLDER / "english.pcfg")
    good, bad = grammar.encode("he sees"), grammar.encode("sees he")
    end = torch.tensor([END])
    rows = torch.stack([torch.cat([good, end, end]), torch.cat([bad, end, end]), torch.cat([good, good])])
    assert share_grammatical(Inside(grammar), rows) == pytest.approx(1 / 3)
    only_end = torch.full((1, 3), END)
    assert share_grammatical(Inside(grammar), only_end) == 0


def test_validation_and_test_log_floor_excess_and_share():
    torch.manual_seed(0)
    model, source = LanguageModel(TEXT, **TINY), sentence_data()
    run = quiet_trainer([GrammarReport(n_samples=20)])
    for stage, found in (("val", run.validate(model, source)[0]), ("test", run.test(model, source)[0])):
        assert set(found) == {f"{stage}/{key}" for key in ("loss", "entropy_floor", "excess_loss", "grammatical")}
        assert found[f"{stage}/excess_loss"] == pytest.approx(
            found[f"{stage}/loss"] - found[f"{stage}/entropy_floor"], abs=1e-5
        )
        held_out = list(source.split(stage).sentences)
        assert found[f"{stage}/entropy_floor"] == pytest.approx(entropy_floor(Inside(model.grammar), held_out, 20))
        assert found[f"{stage}/grammatical"] < 0.2  # it has learned nothing


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="n_samples must be at least 1, but is 0"):
        GrammarReport(0)
