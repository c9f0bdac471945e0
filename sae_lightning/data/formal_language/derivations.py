"""Sample sentences of a grammar in batches, with the derivation of each word."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.data.formal_language.grammar import N_SPECIAL, Grammar

_MAX_ROUNDS = 1000  # rounds of sampling before an error is raised


class Sentences(NamedTuple):
    """Concatenated words of several sentences."""

    tokens: Tensor
    """Token of each word, int64 `(n_words,)`."""
    sentences: Tensor
    """Index of each word's sentence, ascending from 0, int64 `(n_words,)`."""
    parents: Tensor
    """Nonterminal that yielded each word, int64 `(n_words,)`."""
    depths: Tensor
    """Number of counted nonterminals above each word in its derivation, int64 `(n_words,)`."""

    def lengths(self) -> Tensor:
        """Return the number of words of each sentence, int64 `(n_sentences,)`."""
        return torch.bincount(self.sentences)

    def positions(self) -> Tensor:
        """Return the position of each word in its sentence, from 0, int64 `(n_words,)`."""
        lengths = self.lengths()
        starts = lengths.cumsum(0) - lengths
        return torch.arange(len(self.tokens)) - starts[self.sentences]


class SentenceSampler:
    r"""Draws sentences from a grammar; the nonterminals of all sentences are expanded in parallel.

    Args:
        grammar: The grammar.
        max_length: Maximum number of words; longer sentences are rejected.
        counted: Names of the nonterminals that `Sentences.depths` counts.

    Raises:
        ValueError: If `max_length` is below 1 or the grammar lacks one of the nonterminals.

    Example:
        >>> import torch
        >>> from sae_lightning.data import Grammar
        >>> from sae_lightning.data.formal_language.derivations import SentenceSampler
        >>> grammar = Grammar("S -> 'a' B [1.0]\nB -> 'b' [1.0]")
        >>> sentences = SentenceSampler(grammar, max_length=5).draw(2, torch.Generator())
        >>> grammar.decode(sentences.tokens), sentences.sentences
        ('a b a b', tensor([0, 0, 1, 1]))
    """

    def __init__(self, grammar: Grammar, max_length: int, counted: Sequence[str] = ()) -> None:
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, but is {max_length}")
        unknown = [name for name in counted if name not in grammar.nonterminals]
        if unknown:
            raise ValueError(f"nonterminals must be among the grammar's {grammar.nonterminals}, but are {unknown}")
        self.max_length = max_length
        self._n_nonterminals = n = len(grammar.nonterminals)
        self._counted = torch.tensor([name in counted for name in grammar.nonterminals])
        rules = grammar.rules
        lefts = torch.tensor([rule.left for rule in rules])
        self._last_rule = torch.searchsorted(lefts, torch.arange(n), right=True) - 1
        # the rules of symbol s partition the interval from s to s + 1: a uniform number in it selects one
        ends, total = [], 0.0
        for i, rule in enumerate(rules):
            total = min(1.0, total + rule.probability)
            ends.append(rule.left + total)
            if i + 1 < len(rules) and rules[i + 1].left != rule.left:
                total = 0.0
        self._ends = torch.tensor(ends, dtype=torch.float64)
        self._sizes = torch.tensor([len(rule.right) for rule in rules])
        self._rights = torch.zeros(len(rules), int(self._sizes.max()), dtype=torch.int64)
        filled = torch.arange(self._rights.shape[1]) < self._sizes[:, None]
        rights = torch.tensor([symbol for rule in rules for symbol in rule.right])
        self._rights[filled] = self._chain_ends(grammar)[rights]

    def _chain_ends(self, grammar: Grammar) -> Tensor:
        """Return the symbol that each symbol becomes by deterministic unary rules, which need no draw.

        Symbols that are counted or that yield a word are kept.
        """
        n_rules = torch.bincount(torch.tensor([rule.left for rule in grammar.rules]))
        ends = torch.arange(self._n_nonterminals + len(grammar.words))
        for rule in grammar.rules:
            if n_rules[rule.left] == 1 and len(rule.right) == 1 and rule.right[0] < self._n_nonterminals:
                ends[rule.left] = rule.left if self._counted[rule.left] else rule.right[0]
        for _ in range(self._n_nonterminals.bit_length()):
            ends = ends[ends]
        return ends

    def draw(self, n: int, generator: torch.Generator) -> Sentences:
        """Draw `n` independent sentences.

        Raises:
            ValueError: If hardly any sentence is as short as `max_length`.
        """
        parts: list[Sentences] = []
        missing, rounds = n, 0
        while missing:
            found = self._attempt(missing + missing // 16 if parts else missing, generator)
            kept = found.sentences < missing
            found = Sentences(*(field[kept] for field in found))
            n_found = int(found.sentences[-1]) + 1 if len(found.sentences) else 0
            parts.append(found._replace(sentences=found.sentences + (n - missing)))
            missing -= n_found
            rounds += 1
            if rounds == _MAX_ROUNDS:
                raise ValueError(f"max_length = {self.max_length} is too short: hardly any sentence fits")
        return Sentences(*(torch.cat(fields) for fields in zip(*parts, strict=True)))

    def _attempt(self, n: int, generator: torch.Generator) -> Sentences:
        """Draw `n` sentences, and drop those that are too long."""
        symbols = torch.zeros(n, dtype=torch.int64)
        sentences = torch.arange(n)
        parents = torch.full((n,), -1)
        depths = torch.zeros(n, dtype=torch.int64)
        done: list[tuple[Tensor, ...]] = []
        while len(symbols):
            inner = symbols < self._n_nonterminals
            replaced = symbols[inner]
            draws = torch.rand(len(replaced), generator=generator, dtype=torch.float64)
            rules = torch.searchsorted(self._ends, replaced + draws, right=True).minimum(self._last_rule[replaced])
            sizes = torch.ones_like(symbols)
            sizes[inner] = self._sizes[rules]
            origin = torch.repeat_interleave(sizes)
            place = torch.arange(len(origin)) - (sizes.cumsum(0) - sizes)[origin]
            rule_of = torch.zeros_like(symbols)
            rule_of[inner] = rules
            new = inner[origin]
            depths = depths[origin] + (new & self._counted[symbols.clamp_max(self._n_nonterminals - 1)][origin])
            parents = torch.where(new, symbols[origin], parents[origin])
            symbols = torch.where(new, self._rights[rule_of[origin], place * new], symbols[origin])
            sentences = sentences[origin]
            # every symbol yields at least one word: reject a sentence with more than max_length symbols
            fits = torch.bincount(sentences, minlength=n) <= self.max_length
            growing = torch.zeros(n, dtype=torch.bool)
            growing[sentences[symbols < self._n_nonterminals]] = True
            state = symbols, sentences, parents, depths
            finished = (fits & ~growing)[sentences]
            done.append(tuple(field[finished] for field in state))
            going_on = (fits & growing)[sentences]
            symbols, sentences, parents, depths = (field[going_on] for field in state)
        symbols, sentences, parents, depths = (torch.cat(fields) for fields in zip(*done, strict=True))
        order = sentences.argsort(stable=True)
        present = torch.zeros(n, dtype=torch.int64)
        present[sentences] = 1
        renumbered = (present.cumsum(0) - 1)[sentences]
        tokens = symbols - self._n_nonterminals + N_SPECIAL
        return Sentences(tokens[order], renumbered[order], parents[order], depths[order])
