"""Probabilities of sentences against nltk's parser and against counting."""

import itertools
import math

import pytest
import torch

from sae_lightning.data import Grammar
from sae_lightning.data.formal_language.derivations import SentenceSampler
from sae_lightning.data.formal_language.grammar import BEGIN, END, N_SPECIAL, PAD
from sae_lightning.data.formal_language.inside import Inside
from tests.helpers.language import FOLDER, SHIPPED

AMBIGUOUS = "S -> S S [0.3] | A [0.4] | 'x' [0.3]\nA -> 'x' [0.5] | 'y' S 'y' [0.2] | S [0.3]"


def by_nltk(text, words):
    """Sum of the probabilities of all parses that nltk finds."""
    from nltk import PCFG
    from nltk.parse.pchart import InsideChartParser

    parser = InsideChartParser(PCFG.fromstring(text), beam_size=0)
    return sum(tree.prob() for tree in parser.parse(words))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_probabilities_are_the_sums_over_nltks_parses(path):
    grammar = Grammar.from_file(path)
    drawn = SentenceSampler(grammar, 9).draw(200, torch.Generator().manual_seed(0))
    sentences = list({grammar.decode(tokens) for tokens in drawn.tokens.split(drawn.lengths().tolist())})[:25]
    found = Inside(grammar).log_probabilities([grammar.encode(sentence) for sentence in sentences])
    for sentence, log_probability in zip(sentences, found.tolist(), strict=True):
        assert log_probability == pytest.approx(math.log(by_nltk(path.read_text(), sentence.split())))


def test_an_ambiguous_sentence_sums_its_derivations():
    grammar = Grammar.from_file(FOLDER / "english.pcfg")
    inside = Inside(grammar)
    clear, ambiguous = "he sees and she well", "he sees or finds or holds"  # the second one groups in two ways
    assert inside.log_probabilities([grammar.encode(clear)]).isinf().all()
    single = grammar.encode("he sees or finds")
    p1, p2 = inside.log_probabilities([single, grammar.encode(ambiguous)]).exp().tolist()
    joined = 0.15 * 0.2 * 0.1 * 0.1  # VP -> VP Conj VP, a conjunction, VP -> V, a verb
    assert p2 == pytest.approx(2 * p1 * joined)


def test_chains_and_cycles_of_single_symbols_are_summed():
    # S -> A -> S goes round with 0.4 * 0.3; all of it by hand: p = 0.3 + 0.4 * (0.5 + 0.3 p)
    p = (0.3 + 0.4 * 0.5) / (1 - 0.4 * 0.3)
    grammar = Grammar(AMBIGUOUS)
    assert Inside(grammar).log_probabilities([grammar.encode("x")]).exp().item() == pytest.approx(p)


def test_probabilities_of_all_sentences_of_a_length_sum_to_that_lengths():
    grammar = Grammar(AMBIGUOUS)
    inside = Inside(grammar)
    wanted = inside.length_probabilities(6)
    assert wanted[0] == 0
    for length in range(1, 7):
        words = itertools.product([N_SPECIAL, N_SPECIAL + 1], repeat=length)
        found = inside.log_probabilities([torch.tensor(sentence) for sentence in words])
        assert found.exp().sum().item() == pytest.approx(wanted[length].item())


@pytest.mark.parametrize(("name", "longest"), [("english", 400), ("expressions", 1500)])
def test_lengths_sum_to_one_and_have_the_mean(name, longest):
    grammar = Grammar.from_file(FOLDER / f"{name}.pcfg")
    found = Inside(grammar).length_probabilities(longest)
    assert found.sum().item() == pytest.approx(1, abs=1e-7)
    mean = (found * torch.arange(len(found))).sum().item()
    assert mean == pytest.approx(grammar.expected_length, rel=1e-4)


def test_long_sentences_neither_vanish_nor_overflow():
    grammar = Grammar.from_file(FOLDER / "english.pcfg")
    inside = Inside(grammar)
    short = grammar.encode("he sees slowly")
    longer = [torch.cat([short, short[-1:].repeat(n)]) for n in (98, 99)]
    found = inside.log_probabilities(longer)
    assert (found[1] - found[0]).item() == pytest.approx(math.log(0.45 * 0.1), rel=1e-9)


def test_what_is_no_sentence_has_no_probability():
    grammar = Grammar.from_file(FOLDER / "english.pcfg")
    sentences = [grammar.encode("sees he"), torch.tensor([], dtype=torch.int64)]
    sentences += [torch.tensor([token]) for token in (PAD, BEGIN, END)]
    assert Inside(grammar).log_probabilities(sentences).tolist() == [-float("inf")] * 5


def test_a_language_of_single_words():
    grammar = Grammar("S -> 'a' [0.25] | A [0.75]\nA -> 'a' [0.5] | 'b' [0.5]")
    inside = Inside(grammar)
    found = inside.log_probabilities([grammar.encode(sentence) for sentence in ("a", "b", "a b")]).exp()
    torch.testing.assert_close(found, torch.tensor([0.625, 0.375, 0.0], dtype=torch.float64))
    assert inside.length_probabilities(2).tolist() == pytest.approx([0, 1, 0])
