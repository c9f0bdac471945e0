"""The sampler of sentences against a recursive one over nltk's productions, and against exact expectations."""

import random
from collections import Counter

import pytest
import torch
from scipy import stats

from sae_lightning.data import Grammar
from sae_lightning.data.formal_language.derivations import SentenceSampler
from sae_lightning.data.formal_language.grammar import N_SPECIAL
from sae_lightning.data.formal_language.inside import Inside
from tests.helpers.language import FOLDER, SHIPPED


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def recursive(productions, symbol, rng, parent=None):
    """One derivation of a symbol by nltk's productions: words with the nonterminals that yield them."""
    if isinstance(symbol, str):
        return [(symbol, str(parent))]
    rules = productions[symbol]
    chosen = rng.choices(rules, [rule.prob() for rule in rules])[0]
    return [pair for child in chosen.rhs() for pair in recursive(productions, child, rng, symbol)]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_lengths_and_parents_are_those_of_nltks_productions(path):
    from nltk import PCFG

    theirs = PCFG.fromstring(path.read_text())
    productions = {}
    for production in theirs.productions():
        productions.setdefault(production.lhs(), []).append(production)
    rng = random.Random(0)
    reference = [recursive(productions, theirs.start(), rng) for _ in range(3000)]
    reference = [sentence for sentence in reference if len(sentence) <= 40]
    grammar = Grammar.from_file(path)
    drawn = SentenceSampler(grammar, max_length=40).draw(3000, generator())
    lengths = drawn.lengths().tolist()
    assert len(lengths) == 3000
    assert stats.ks_2samp(lengths, [len(sentence) for sentence in reference]).pvalue > 1e-3
    words = Counter(grammar.words[i - N_SPECIAL] for i in drawn.tokens.tolist())
    counted = Counter(word for sentence in reference for word, _ in sentence)
    table = [[c[word] for word in grammar.words] for c in (words, counted)]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    parent_of = {word: parent for sentence in reference for word, parent in sentence}
    for token, parent in set(zip(drawn.tokens.tolist(), drawn.parents.tolist(), strict=True)):
        word = grammar.words[token - N_SPECIAL]
        assert word not in "()[]" or grammar.nonterminals[parent] == ("Round" if word in "()" else "Square")
        assert word in "()[]" or grammar.nonterminals[parent] == parent_of[word]


def test_rules_are_taken_as_often_as_their_probabilities_say():
    grammar = Grammar("S -> A [0.2] | B [0.3] | C [0.5]\nA -> 'a' [1.0]\nB -> 'b' [0.1] | 'c' [0.9]\nC -> 'd' [1.0]")
    drawn = SentenceSampler(grammar, 5).draw(20_000, generator())
    counts = torch.bincount(drawn.tokens - N_SPECIAL).tolist()
    assert stats.chisquare(counts, [20_000 * p for p in (0.2, 0.03, 0.27, 0.5)]).pvalue > 1e-3


def test_every_sentence_is_grammatical_and_short_enough():
    grammar = Grammar.from_file(FOLDER / "english.pcfg")
    drawn = SentenceSampler(grammar, 12).draw(500, generator())
    lengths = drawn.lengths()
    assert lengths.max() == 12
    assert lengths.min() >= 2
    sentences = drawn.tokens.split(lengths.tolist())
    assert Inside(grammar).log_probabilities(sentences).isfinite().all()
    assert torch.equal(drawn.positions(), torch.cat([torch.arange(n) for n in lengths.tolist()]))


def test_lengths_follow_the_distribution_without_the_long_ones():
    grammar = Grammar.from_file(FOLDER / "english.pcfg")
    wanted = Inside(grammar).length_probabilities(8)[2:]
    counts = torch.bincount(SentenceSampler(grammar, 8).draw(10_000, generator()).lengths())[2:]
    assert stats.chisquare(counts.numpy(), (10_000 * wanted / wanted.sum()).numpy()).pvalue > 1e-3


def test_depths_count_the_brackets_around():
    grammar = Grammar.from_file(FOLDER / "dyck.pcfg")
    drawn = SentenceSampler(grammar, 60, ["Round", "Square"]).draw(500, generator())
    start = 0
    for length in drawn.lengths().tolist():
        depth, wanted = 0, []
        for token in drawn.tokens[start : start + length].tolist():
            opens = grammar.words[token - N_SPECIAL] in "(["
            depth += opens
            wanted.append(depth)
            depth -= not opens
        assert drawn.depths[start : start + length].tolist() == wanted
        start += length


def test_the_same_generator_gives_the_same_sentences():
    sampler = SentenceSampler(Grammar.from_file(FOLDER / "expressions.pcfg"), 30)
    first, again, other = (sampler.draw(50, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.tokens, again.tokens)
    assert not torch.equal(first.tokens[:50], other.tokens[:50])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, ()), "max_length must be at least 1, but is 0"),
        ((5, ("X",)), r"nonterminals must be among the grammar's \['S', 'A'\], but are \['X'\]"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        SentenceSampler(Grammar("S -> A [1.0]\nA -> 'a' [1.0]"), *arguments)


def test_sentences_that_are_all_too_long_are_refused():
    grammar = Grammar("S -> 'a' 'b' 'c' [1.0]")
    with pytest.raises(ValueError, match="max_length = 2 is too short"):
        SentenceSampler(grammar, 2).draw(4, generator())


def test_a_chain_of_rules_without_a_choice_needs_no_draws(monkeypatch):
    chain = [f"S{i} -> S{i + 1} [1.0]" for i in range(500)]
    grammar = Grammar("\n".join([*chain, "S500 -> 'a' [0.5] | 'b' S0 [0.5]"]))
    draws, rand = [], torch.rand
    monkeypatch.setattr(torch, "rand", lambda *args, **kwargs: draws.append(args) or rand(*args, **kwargs))
    drawn = SentenceSampler(grammar, 10).draw(64, generator())
    assert len(draws) < 40
    assert set(drawn.parents.tolist()) == {500}
    lengths = torch.bincount(drawn.lengths(), minlength=11)[1:]
    assert lengths[0] > lengths[3:].sum() > 0


def test_counted_symbols_within_a_chain_are_counted():
    grammar = Grammar("S -> A [1.0]\nA -> B [1.0]\nB -> C [1.0]\nC -> D [1.0]\nD -> 'd' S [0.5] | 'd' [0.5]")
    plain, counted = (SentenceSampler(grammar, 20, names).draw(50, generator()) for names in ([], ["B", "D"]))
    assert plain.depths.unique().tolist() == [0]
    assert torch.equal(counted.depths, 2 * (counted.positions() + 1))
    assert counted.parents.unique().tolist() == [4]


def test_the_largest_draw_takes_a_symbols_last_rule(monkeypatch):
    """The number behind it belongs to the next symbol, and is what they sum to in floating point."""
    grammar = Grammar("\n".join([*(f"S{i} -> 'a' [0.5] | S{i + 1} [0.5]" for i in range(99)), "S99 -> 'z' [1.0]"]))
    largest = torch.tensor(1.0, dtype=torch.float64).nextafter(torch.tensor(0.0, dtype=torch.float64))
    assert 98 + largest == 99
    monkeypatch.setattr(torch, "rand", lambda n, **kwargs: largest.expand(n))
    drawn = SentenceSampler(grammar, 5).draw(3, generator())
    assert grammar.decode(drawn.tokens) == "z z z"
