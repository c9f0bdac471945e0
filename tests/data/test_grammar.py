"""Grammars: what is read, what follows from it, and what is refused."""

import math

import pytest
import torch

from sae_lightning.data import Grammar
from sae_lightning.data.grammar import BEGIN, END, N_SPECIAL, PAD
from tests.conftest import CONFIGS

FOLDER = CONFIGS / "formal_language" / "grammars"
SHIPPED = sorted(FOLDER.glob("*.pcfg"))

LIST = "S -> A S [0.25] | A [0.75]\nA -> 'a' [0.5] | 'b' [0.5]"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_grammars_are_what_nltk_reads(path):
    from nltk import PCFG

    grammar, theirs = Grammar.from_file(path), PCFG.fromstring(path.read_text())
    symbols = [*grammar.nonterminals, *grammar.words]
    ours = {(symbols[r.left], tuple(symbols[s] for s in r.right)): r.probability for r in grammar.rules}
    assert ours == {(str(p.lhs()), tuple(map(str, p.rhs()))): p.prob() for p in theirs.productions()}
    assert grammar.nonterminals[0] == str(theirs.start())


def test_english_has_the_papers_rules_and_shares():
    grammar = Grammar.from_file(FOLDER / "english.pcfg")
    assert grammar.nonterminals == ["S", "NP", "VP", "N", "V", "Adj", "Pro", "Adv", "Conj"]
    assert len(grammar.words) == 60
    assert grammar.expected_length == pytest.approx(7.7, abs=0.05)
    counts = dict(zip(grammar.nonterminals, grammar.expected_counts, strict=True))
    shares = {"Adv": 0.232, "N": 0.216, "V": 0.208, "Adj": 0.149, "Conj": 0.128, "Pro": 0.067}
    for symbol, share in shares.items():
        assert counts[symbol] / grammar.expected_length == pytest.approx(share, abs=0.003), symbol


def test_expectations_of_a_list():
    grammar = Grammar(LIST)
    # a geometric number of words, each of a bit
    assert grammar.expected_length == pytest.approx(1 / 0.75)
    choice = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert grammar.derivation_entropy == pytest.approx((choice + math.log(2)) / 0.75)


def test_lines_may_go_on_and_be_comments():
    grammar = Grammar("# first\n\nS -> 'a' [0.5] \\\n   | 'b' [0.5]\n")
    assert grammar.words == ["a", "b"]
    assert {rule.line for rule in grammar.rules} == {3}


def test_words_become_tokens_and_back():
    grammar = Grammar(LIST)
    tokens = grammar.encode("b a")
    assert tokens.tolist() == [N_SPECIAL + 1, N_SPECIAL]
    assert grammar.decode(torch.tensor([BEGIN, *tokens.tolist(), END, PAD])) == "b a"
    assert [grammar.vocabulary[i] for i in tokens.tolist()] == ["b", "a"]
    with pytest.raises(ValueError, match=r"words \['a', 'b'\].*'c'|one of the grammar's \['a', 'b'\], but one is 'c'"):
        grammar.encode("a c")


def test_the_same_rules_in_another_text_are_the_same_grammar():
    assert Grammar(LIST).same_as(Grammar("# read again\n" + LIST.replace("\n", "\n\n")))
    assert not Grammar(LIST).same_as(Grammar(LIST.replace("'b'", "'c'")))
    assert not Grammar(LIST).same_as(Grammar(LIST.replace("0.25", "0.35").replace("0.75", "0.65")))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S -> A [0.5] | 'b' [0.5]\nA -> 'a' [0.7]", r"line 2: the probabilities of A must sum to 1, but sum to 0.7"),
        ("S -> 'a' [0.5]\nS -> 'b' [0.4]", r"line 1: the probabilities of S must sum to 1, but sum to 0.9"),
        ("S -> A [1.0]\n\nA -> B [1.0]", r"line 3: B is used, but has no rule"),
        ("S -> 'a' [1.0]\n# no way here\nA -> 'b' [1.0]", r"line 3: A cannot be reached from the start symbol S"),
        ("S -> 'a' [0.5] | S S [0.5]", r"line 1: sentences must have a finite expected length, .* each S leads to 1 "),
        ("S -> 'x' A [1.0]\nA -> A [1.0]", r"line 2: sentences must have a finite expected length, .* each A "),
        ("S -> A B [1.0]\nA -> 'a' [1.0]\nB -> 'b' B B [0.6] | 'b' [0.4]", r"line 3: .* each B leads to 1.2 "),
        ("S -> 'a' [0.5] | [0.5]", r"line 1: each rule must yield a symbol, but one of S is empty"),
        ("S -> 'a'", r"line 1: probabilities must be positive, but one of S is 0"),
        ("S -> 'a' [1.0]\nwhat is this", r"line 2: 'what is this' is no rule of a grammar \(Expected an arrow\)"),
        ("S -> 'a [1.0]", r"line 1: .*Unterminated string"),
        ("S -> 'a' [0.5] \\", r"line 1: the text ends within a rule"),
        ("# nothing\n", r"at least one rule"),
    ],
)
def test_unsound_grammars_are_refused_by_their_line(text, message):
    with pytest.raises(
        ValueError, match=rf"^mine(, |: ).*{message}" if "line" not in message else rf"^mine, {message}"
    ):
        Grammar(text, "mine")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"grammar '.*none.pcfg' cannot be read: No such file"):
        Grammar.from_file(tmp_path / "none.pcfg")
