"""Grammars: what is read, what follows from it, and what is refused."""

import math
import os
import random
import re
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from sae_lightning.data import Grammar
from sae_lightning.data.formal_language.grammar import BEGIN, END, N_SPECIAL, PAD
from tests.helpers.language import FOLDER, SHIPPED
from tests.helpers.runs import ROOT

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
        ("S -> A [1.0]\nA -> 'a' B [1.0]\nB -> B [0.999999999] | 'b' [0.000000001]", r"line 3: .* each B leads to 1 "),
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


def test_a_file_is_read_as_utf8_whatever_the_locale_and_its_line_ends(tmp_path):
    path = tmp_path / "mine.pcfg"
    path.write_bytes("\ufeffS -> 'café' [0.5] \\\r\n | '日本' [0.5]\r\n".encode())
    program = "import sys; from sae_lightning.data import Grammar; print(ascii(Grammar.from_file(sys.argv[1]).words))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-c", program, str(path)]
    found = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ascii(["café", "日本"])


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    path = tmp_path / "mine.pcfg"
    path.write_bytes(b"S -> A [1.0]\nA -> 'caf\xe9' [1.0]\n")
    with pytest.raises(ValueError, match=rf"^'{path}' must be UTF-8, but its byte 22 \(in line 2\) is not$"):
        Grammar.from_file(path)


# -- large grammars -------------------------------------------------------------------------------------------------

LARGE = {
    "chain": lambda n: [f"S{i} -> 'w{i}' S{i + 1} [0.5] | 'w{i}' [0.5]" for i in range(n)] + [f"S{n} -> 'end' [1.0]"],
    "chain of single symbols": lambda n: [f"S{i} -> S{i + 1} [1.0]" for i in range(n)] + [f"S{n} -> 'end' [1.0]"],
    "cycle": lambda n: [f"S{i} -> 'w{i}' S{(i + 1) % n} [0.5] | 'w{i}' [0.5]" for i in range(n)],
    "one symbol": lambda n: ["S -> " + " | ".join(f"'w{i}' [{1 / n}]" for i in range(n))],
}


def seconds(function):
    """The least of three times that a function takes."""
    found = []
    for _ in range(3):
        begin = time.process_time()
        function()
        found.append(time.process_time() - begin)
    return min(found)


@pytest.mark.parametrize("kind", LARGE)
def test_reading_a_grammar_takes_time_in_proportion_to_its_rules(kind):
    def read(text):
        grammar = Grammar(text)
        return grammar.expected_length, grammar.derivation_entropy

    few, many = ("\n".join(LARGE[kind](n)) for n in (250, 2000))
    read(few)  # imports
    ratio = seconds(lambda: read(many)) / seconds(lambda: read(few))
    assert ratio < 24, ratio  # 8 if linear, 64 if quadratic, 512 if cubic


def test_a_large_grammar_has_the_expectations_of_a_small_one():
    chain, cycle = (Grammar("\n".join(LARGE[kind](2000))) for kind in ("chain", "cycle"))
    for grammar in (chain, cycle):  # a geometric number of words
        assert grammar.expected_length == pytest.approx(2)
        assert grammar.derivation_entropy == pytest.approx(2 * math.log(2))


def random_rules(rng):
    """Rules of a few symbols, with two or three alternatives of up to three symbols; every symbol can be reached."""
    n = rng.randint(1, 6)
    lines = []
    for i in range(n):
        sides = [[f"S{rng.randrange(n)}" if rng.random() < 0.45 else "'w'" for _ in range(rng.randint(1, 3))]]
        sides += [[f"S{i + 1}"] if i + 1 < n else ["'w'"]]
        share = rng.choice([0.25, 0.5, 0.75])
        lines.append(f"S{i} -> {' '.join(sides[0])} [{share}] | {' '.join(sides[1])} [{1 - share}]")
    return "\n".join(lines)


def test_grammars_are_refused_exactly_where_a_symbol_outgrows_itself():
    """Against eigenvalues of the dense matrix of nltk's productions."""
    from nltk import PCFG

    rng, n_refused = random.Random(0), 0
    for _ in range(300):
        text = random_rules(rng)
        productions = PCFG.fromstring(text).productions()
        symbols = list(dict.fromkeys(production.lhs() for production in productions))
        offspring = np.zeros((len(symbols), len(symbols)))
        for production in productions:
            for symbol in production.rhs():
                if not isinstance(symbol, str):
                    offspring[symbols.index(production.lhs()), symbols.index(symbol)] += production.prob()
        reaches = np.linalg.matrix_power(np.eye(len(symbols)) + (offspring > 0), len(symbols)) > 0
        growth = np.abs(np.linalg.eigvals(offspring)).max()
        if growth < 1 - 1e-6:
            Grammar(text)
            continue
        n_refused += 1
        with pytest.raises(ValueError, match="sentences must have a finite expected length") as caught:
            Grammar(text)
        line, symbol, told = re.search(r"line (\d+): .* each S(\d+) leads to ([\d.]+) ", str(caught.value)).groups()
        symbol = int(symbol)
        assert int(line) == symbol + 1
        block = np.flatnonzero(reaches[symbol] & reaches[:, symbol])
        own = np.abs(np.linalg.eigvals(offspring[np.ix_(block, block)])).max()
        assert own >= 1 - 1e-6
        assert float(told) == pytest.approx(own, rel=1e-3)
    assert 50 < n_refused < 250


def test_a_large_grammar_that_grows_is_refused_by_its_line():
    rules = LARGE["chain"](500)
    rules[-1] = "S500 -> A [0.5] | 'end' [0.5]"
    rules += [f"A{i or ''} -> A{(i + 1) % 400 or ''} [0.75] | A{(i + 1) % 400 or ''} 'x' [0.25]" for i in range(400)]
    rules[600] = rules[600].replace("'x' [0.25]", "A99 [0.25]")
    with pytest.raises(ValueError, match=r"line 502: sentences must have .* each A leads to (1\.\d+|1) or more"):
        Grammar("\n".join(rules))
