"""Probabilistic context-free grammars: read from nltk's notation, checked, and laid out as arrays."""

from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PAD, BEGIN, END = 0, 1, 2
"""Tokens that stand for no word: filling, and the two ends of a sentence."""
N_SPECIAL = 3

_TOLERANCE = 1e-6  # of the sum of a symbol's probabilities


class Rule(NamedTuple):
    """One production: symbols below the number of nonterminals are nonterminals, the others terminals."""

    left: int
    right: tuple[int, ...]
    probability: float
    line: int


class Grammar:
    """A probabilistic context-free grammar over words.

    It is written in the notation of nltk's `PCFG.fromstring`: `NP -> Adj N [0.4] | 'they' [0.6]`, where the first
    left side is the start symbol.

    Args:
        text: The rules.
        source: What an error calls the text, such as its file.

    Attributes:
        nonterminals: Names of the symbols with rules; the start symbol comes first.
        words: The terminals; word `i` is token `N_SPECIAL + i`.
        rules: All productions, those of a nonterminal side by side.

    Raises:
        ValueError: If a line cannot be read, probabilities do not sum to 1, a symbol is undefined or unreachable, a
            rule yields nothing, or sentences are infinitely long on average. It names the line.
    """

    def __init__(self, text: str, source: str = "grammar") -> None:
        self.text = text
        self._source = source
        productions = self._read()
        symbols = list(dict.fromkeys(left for left, _, _, _ in productions))
        self.nonterminals: list[str] = [str(symbol) for symbol in symbols]
        rights = (symbol for _, right, _, _ in productions for symbol in right)
        self.words: list[str] = list(dict.fromkeys(symbol for symbol in rights if isinstance(symbol, str)))
        index = {symbol: i for i, symbol in enumerate([*symbols, *self.words])}
        for _, right, _, line in productions:
            for symbol in right:
                if symbol not in index:
                    self._fail(line, f"{symbol} is used, but has no rule")
        self.rules = sorted(
            (Rule(index[left], tuple(index[s] for s in right), p, line) for left, right, p, line in productions),
            key=lambda rule: rule.left,
        )
        self._check()

    @classmethod
    def from_file(cls, path: str | Path) -> "Grammar":
        """Read a grammar from a text file.

        Raises:
            ValueError: If there is no such file, or it holds no sound grammar.
        """
        try:
            text = Path(path).read_text()
        except OSError as error:
            raise ValueError(f"grammar {str(path)!r} cannot be read: {error.strerror}") from None
        return cls(text, str(path))

    @property
    def vocabulary(self) -> list[str]:
        """What each token stands for, the special ones included."""
        return ["<pad>", "<begin>", "<end>", *self.words]

    def same_as(self, other: "Grammar") -> bool:
        """Whether another grammar has the same rules, in the same order, whatever its text looks like."""
        mine, others = (([rule[:3] for rule in g.rules], g.nonterminals, g.words) for g in (self, other))
        return mine == others

    # ------------------------------------------------------------------ reading

    def _read(self) -> list[tuple[object, tuple[object, ...], float, int]]:
        """Productions by line: left side, right side, probability, line."""
        from nltk.grammar import read_grammar, standard_nonterm_parser

        found: list[tuple[object, tuple[object, ...], float, int]] = []
        held, first = "", 0
        for number, raw in enumerate(self.text.splitlines(), 1):
            line = raw.strip()
            if not line or line.startswith("#"):
                continue
            first = first if held else number
            held += line
            if held.endswith("\\"):
                held = held[:-1].rstrip() + " "
                continue
            try:
                _, productions = read_grammar(held, standard_nonterm_parser, probabilistic=True)
            except ValueError as error:
                self._fail(first, f"{held!r} is no rule of a grammar ({str(error).splitlines()[-1]})")
            for production in productions:
                found.append((production.lhs(), production.rhs(), production.prob(), first))
            held = ""
        if held:
            self._fail(first, "the text ends within a rule")
        if not found:
            raise ValueError(f"{self._source}: a grammar must have at least one rule, but there is none")
        return found

    def _fail(self, line: int, message: str) -> None:
        raise ValueError(f"{self._source}, line {line}: {message}")

    def _line_of(self, symbol: int) -> int:
        return next(rule.line for rule in self.rules if rule.left == symbol)

    def _check(self) -> None:
        n = len(self.nonterminals)
        for rule in self.rules:
            if not rule.right:
                self._fail(
                    rule.line, f"each rule must yield a symbol, but one of {self.nonterminals[rule.left]} is empty"
                )
            if not rule.probability > 0:
                name = self.nonterminals[rule.left]
                self._fail(rule.line, f"probabilities must be positive, but one of {name} is {rule.probability}")
        for symbol, name in enumerate(self.nonterminals):
            total = sum(rule.probability for rule in self.rules if rule.left == symbol)
            if abs(total - 1) > _TOLERANCE:
                line = self._line_of(symbol)
                self._fail(line, f"the probabilities of {name} must sum to 1, but sum to {total:.6g}")
        reached, todo = {0}, [0]
        while todo:
            symbol = todo.pop()
            for rule in self.rules:
                if rule.left == symbol:
                    new = {s for s in rule.right if s < n} - reached
                    reached |= new
                    todo += new
        for symbol, name in enumerate(self.nonterminals):
            if symbol not in reached:
                line = self._line_of(symbol)
                self._fail(line, f"{name} cannot be reached from the start symbol {self.nonterminals[0]}")
        growth, symbol = self._growth()
        if growth >= 1 - 1e-9:
            self._fail(
                self._line_of(symbol),
                f"sentences must have a finite expected length, but each {self.nonterminals[symbol]} leads to "
                f"{growth:.4g} or more symbols that go on like it, on average",
            )

    def _growth(self) -> tuple[float, int]:
        """The largest eigenvalue of the expected offspring, and a symbol of those that lead back to themselves so."""
        (growth, leading), (_, following) = (_largest_eigenpair(m) for m in (self.offspring, self.offspring.T))
        return growth, int(np.argmax(leading * following))  # what leads there need not follow from it

    # ------------------------------------------------------------------ expectations

    @cached_property
    def offspring(self) -> NDArray[np.float64]:
        """Expected number of each nonterminal among what a nonterminal is replaced by, `(n, n)`."""
        n = len(self.nonterminals)
        found = np.zeros((n, n))
        for rule in self.rules:
            for symbol in rule.right:
                if symbol < n:
                    found[rule.left, symbol] += rule.probability
        return found

    @cached_property
    def expected_counts(self) -> NDArray[np.float64]:
        """How often a derivation replaces each nonterminal, on average, `(n,)`."""
        n = len(self.nonterminals)
        start = np.eye(n)[0]
        return np.linalg.solve(np.eye(n) - self.offspring.T, start)

    @cached_property
    def expected_length(self) -> float:
        """Mean number of words of a sentence."""
        n = len(self.nonterminals)
        words = np.zeros(n)
        for rule in self.rules:
            words[rule.left] += rule.probability * sum(symbol >= n for symbol in rule.right)
        return float(self.expected_counts @ words)

    @cached_property
    def derivation_entropy(self) -> float:
        """Entropy of a derivation in nats; a sentence's own is lower where it has several derivations."""
        entropy = np.zeros(len(self.nonterminals))
        for rule in self.rules:
            entropy[rule.left] -= rule.probability * np.log(rule.probability)
        return float(self.expected_counts @ entropy)

    # ------------------------------------------------------------------ sentences

    def encode(self, sentence: str) -> Tensor:
        """Tokens of words that are separated by spaces, int64 `(n_words,)`.

        Raises:
            ValueError: If a word is none of the grammar's.
        """
        index = {word: N_SPECIAL + i for i, word in enumerate(self.words)}
        unknown = [word for word in sentence.split() if word not in index]
        if unknown:
            raise ValueError(f"each word must be one of the grammar's {self.words}, but one is {unknown[0]!r}")
        return torch.tensor([index[word] for word in sentence.split()], dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        """The words of tokens, without the special ones, separated by spaces."""
        return " ".join(self.words[i - N_SPECIAL] for i in tokens.tolist() if i >= N_SPECIAL)


def _largest_eigenpair(matrix: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
    values, vectors = np.linalg.eig(matrix)
    largest = int(np.argmax(values.real))
    return float(values[largest].real), np.abs(vectors[:, largest])
