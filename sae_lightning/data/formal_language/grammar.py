"""Probabilistic context-free grammars in NLTK's notation."""

from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_lightning.run.files import read_text

PAD, BEGIN, END = 0, 1, 2
"""Special tokens: padding, and the beginning and end of a sentence."""
N_SPECIAL = 3

_TOLERANCE = 1e-6  # for the sum of a symbol's probabilities
_LARGEST_GROWTH = 1 - 2**-29  # not a short decimal, which could be an eigenvalue and make the equation singular


class Rule(NamedTuple):
    """One production; a symbol is a nonterminal if it is below the number of nonterminals, else a terminal."""

    left: int
    right: tuple[int, ...]
    probability: float
    line: int


class Grammar:
    """A probabilistic context-free grammar over words.

    The notation is that of NLTK's `PCFG.fromstring`: `NP -> Adj N [0.4] | 'they' [0.6]`. The first left side is the
    start symbol.

    Args:
        text: The rules.
        source: Name of the text in errors, such as its file.

    Attributes:
        nonterminals: Names of the nonterminals, the start symbol first.
        words: The terminals; word `i` is token `N_SPECIAL + i`.
        rules: All productions, grouped by nonterminal.

    Raises:
        ValueError: If a line cannot be read, probabilities do not sum to 1, a symbol is undefined or unreachable, a
            rule yields nothing, or sentences are infinitely long on average. The message names the line.

    Example:
        >>> from sae_lightning.data import Grammar
        >>> grammar = Grammar("S -> S S [0.25] | 'a' [0.75]")
        >>> grammar.nonterminals, grammar.words, grammar.encode("a a")
        (['S'], ['a'], tensor([3, 3]))
        >>> round(grammar.expected_length, 6)  # solves n = 0.25 * 2 n + 0.75
        1.5
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
        """Read a grammar from a UTF-8 text file.

        Raises:
            ValueError: If there is no such file, or it is not UTF-8 or not a valid grammar.
        """
        try:
            text = read_text(path)
        except OSError as error:
            raise ValueError(f"grammar {str(path)!r} cannot be read: {error.strerror}") from None
        return cls(text, str(path))

    @property
    def vocabulary(self) -> list[str]:
        """Name of each token, including the special ones."""
        return ["<pad>", "<begin>", "<end>", *self.words]

    def same_as(self, other: "Grammar") -> bool:
        """Whether another grammar has the same rules in the same order; the layout of its text does not matter."""
        mine, others = (([rule[:3] for rule in g.rules], g.nonterminals, g.words) for g in (self, other))
        return mine == others

    # ------------------------------------------------------------------ reading

    def _read(self) -> list[tuple[object, tuple[object, ...], float, int]]:
        """Parse the text into productions: left side, right side, probability, line."""
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

    def _check(self) -> None:
        names, n = self.nonterminals, len(self.nonterminals)
        for rule in self.rules:
            if not rule.right:
                self._fail(rule.line, f"each rule must yield a symbol, but one of {names[rule.left]} is empty")
            if not rule.probability > 0:
                name = names[rule.left]
                self._fail(rule.line, f"probabilities must be positive, but one of {name} is {rule.probability}")
        lines = [0] * n  # first line of each symbol
        totals = [0.0] * n
        children: list[list[int]] = [[] for _ in range(n)]
        for rule in self.rules:
            lines[rule.left] = lines[rule.left] or rule.line
            totals[rule.left] += rule.probability
            children[rule.left] += [symbol for symbol in rule.right if symbol < n]
        for name, line, total in zip(names, lines, totals, strict=True):
            if abs(total - 1) > _TOLERANCE:
                self._fail(line, f"the probabilities of {name} must sum to 1, but sum to {total:.6g}")
        reached, todo = {0}, [0]
        while todo:
            new = set(children[todo.pop()]) - reached
            reached |= new
            todo += new
        for symbol, (name, line) in enumerate(zip(names, lines, strict=True)):
            if symbol not in reached:
                self._fail(line, f"{name} cannot be reached from the start symbol {names[0]}")
        growing = _growing_symbol(self.offspring)
        if growing is not None:
            symbol, growth = growing
            self._fail(
                lines[symbol],
                f"sentences must have a finite expected length, but each {names[symbol]} leads to {growth:.4g} or more "
                "symbols that lead back to it, on average",
            )

    # ------------------------------------------------------------------ expectations

    @cached_property
    def offspring(self) -> Any:
        """Expected number of each nonterminal (column) in one expansion of a nonterminal (row), sparse `(n, n)`."""
        from scipy.sparse import csr_array

        n = len(self.nonterminals)
        found = [(rule.probability, rule.left, symbol) for rule in self.rules for symbol in rule.right if symbol < n]
        probabilities, lefts, rights = zip(*found, strict=True) if found else ((), (), ())
        return csr_array((probabilities, (lefts, rights)), shape=(n, n), dtype=np.float64)

    @cached_property
    def expected_counts(self) -> NDArray[np.float64]:
        """Expected number of expansions of each nonterminal in a derivation, `(n,)`."""
        start = np.zeros(len(self.nonterminals))
        start[0] = 1
        return _solve(1, self.offspring.T, start)

    @cached_property
    def expected_length(self) -> float:
        """Expected number of words of a sentence."""
        n = len(self.nonterminals)
        words = np.zeros(n)
        for rule in self.rules:
            words[rule.left] += rule.probability * sum(symbol >= n for symbol in rule.right)
        return float(self.expected_counts @ words)

    @cached_property
    def derivation_entropy(self) -> float:
        """Entropy of a derivation in nats; that of a sentence is lower if it has several derivations."""
        entropy = np.zeros(len(self.nonterminals))
        for rule in self.rules:
            entropy[rule.left] -= rule.probability * np.log(rule.probability)
        return float(self.expected_counts @ entropy)

    # ------------------------------------------------------------------ sentences

    def encode(self, sentence: str) -> Tensor:
        """Convert words, separated by spaces, to tokens, int64 `(n_words,)`.

        Raises:
            ValueError: If the grammar lacks a word.
        """
        index = {word: N_SPECIAL + i for i, word in enumerate(self.words)}
        unknown = [word for word in sentence.split() if word not in index]
        if unknown:
            raise ValueError(f"each word must be one of the grammar's {self.words}, but one is {unknown[0]!r}")
        return torch.tensor([index[word] for word in sentence.split()], dtype=torch.int64)

    def decode(self, tokens: Tensor) -> str:
        """Convert tokens to words, separated by spaces; special tokens are left out."""
        return " ".join(self.words[i - N_SPECIAL] for i in tokens.tolist() if i >= N_SPECIAL)


def _solve(diagonal: float, matrix: Any, right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve `(diagonal * I - matrix) x = right` for a sparse matrix."""
    from scipy.sparse import eye_array
    from scipy.sparse.linalg import spsolve

    found: NDArray[np.float64] = spsolve((diagonal * eye_array(len(right)) - matrix).tocsc(), right)
    return found


def _growing_symbol(offspring: Any) -> tuple[int, float] | None:
    """Return a symbol whose recursion does not die out on average, with its growth factor; None if there is none.

    Symbols that lead to each other form a block. The recursion dies out if the largest eigenvalue of each block of
    `offspring` is below 1. It is below `t` if and only if `(t I - offspring) x = 1` has a positive solution.

    References:
        Berman and Plemmons (1979), Nonnegative Matrices in the Mathematical Sciences, theorem 6.2.3.
    """
    from scipy.sparse.csgraph import connected_components

    _, block = connected_components(offspring, connection="strong")
    within = offspring.tocoo()
    within.data = np.where(block[within.row] == block[within.col], within.data, 0.0)
    within = within.tocsr()
    shrinks = _solve(_LARGEST_GROWTH, within, np.ones(len(block))) > 0
    if shrinks.all():
        return None
    symbol = int(np.argmin(shrinks))
    members = np.flatnonzero(block == block[symbol])
    return symbol, max(1.0, _largest_eigenvalue(within[members][:, members]))


def _largest_eigenvalue(matrix: Any) -> float:
    """Return a lower bound of the largest eigenvalue of an irreducible nonnegative matrix, tight up to rounding.

    `min(matrix x / x) <= eigenvalue <= max(matrix x / x)` for every positive `x`. Inverse iteration with the upper
    bound as shift closes the gap.

    References:
        Noda (1971), Numerische Mathematik 17.
    """
    x = np.ones(matrix.shape[0])
    lower = 0.0
    for _ in range(100):
        ratios = matrix @ x / x
        lower, upper = max(lower, float(ratios.min())), float(ratios.max())
        if upper - lower <= 1e-9 * upper:
            break
        x = _solve(upper, matrix, x)
        x /= x.max()
        if not (x > 0).all():  # underflow: the components differ too much for floating point
            break
    return lower
