"""The inside algorithm: probability of a sentence under a grammar, summed over its derivations."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_lightning.data.formal_language.grammar import N_SPECIAL, Grammar

Array = NDArray[np.float64]


class Inside:
    r"""Probabilities of sentences and of their lengths under a grammar.

    The grammar is converted to binary form: words become symbols, and rules with more than two symbols become chains of
    pairs. The probability that symbol A yields the words from i to j is then

    $$ I_A(i, j) = \sum_B U_{AB} \sum_{B \to C D} p \sum_k I_C(i, k) I_D(k, j), \qquad I_A(i, i + 1) = U_{A w_i} $$

    where $U = (1 - M)^{-1}$ sums over all chains of unary rules, and $M$ holds the probabilities of unary rules.

    Args:
        grammar: The grammar.

    References:
        Baker (1979), Trainable grammars for speech recognition.

    Example:
        >>> from sae_lightning.data import Grammar
        >>> from sae_lightning.data.formal_language.inside import Inside
        >>> grammar = Grammar("S -> S S [0.25] | 'a' [0.75]")
        >>> inside = Inside(grammar)
        >>> inside.log_probabilities([grammar.encode("a"), grammar.encode("a a")]).exp()  # 3/4 and 1/4 * (3/4) ** 2
        tensor([0.7500, 0.1406], dtype=torch.float64)
        >>> inside.length_probabilities(2)
        tensor([0.0000, 0.7500, 0.1406], dtype=torch.float64)
    """

    def __init__(self, grammar: Grammar) -> None:
        n, n_words = len(grammar.nonterminals), len(grammar.words)
        size = n + n_words + sum(max(0, len(rule.right) - 2) for rule in grammar.rules)
        chains: list[tuple[float, int, int]] = []
        pairs: list[tuple[int, int, int, float]] = []
        free = n + n_words
        for rule in grammar.rules:
            left, right, probability = rule.left, list(rule.right), rule.probability
            if len(right) == 1:
                chains.append((probability, left, right[0]))
                continue
            while len(right) > 2:
                pairs.append((left, right.pop(0), free, probability))
                left, probability, free = free, 1.0, free + 1
            pairs.append((left, right[0], right[1], probability))
        self._n, self._n_words = n, n_words
        closure = np.eye(size)  # words and the auxiliary symbols of long rules have no unary rules
        closure[:n, : n + n_words] = _closure(chains, n, n_words)
        self._closure = torch.from_numpy(closure)
        # log factor applied to each word, so that products of many probabilities do not underflow
        self._scale = grammar.derivation_entropy / grammar.expected_length
        self._lefts, self._firsts, self._seconds = (
            torch.tensor([pair[i] for pair in pairs], dtype=torch.int64) for i in range(3)
        )
        weights = torch.tensor([pair[3] for pair in pairs], dtype=torch.float64)
        # maps probabilities of pairs to those of symbols: the pair's rule, then unary chains above it
        self._lift = weights[:, None] * self._closure.T[self._lefts]

    def log_probabilities(self, sentences: Sequence[Tensor]) -> Tensor:
        """Return the log probability of each sentence, -inf for ungrammatical ones, float64 `(n_sentences,)`.

        Args:
            sentences: Tokens of each sentence, int64 `(n_words,)`. A sequence that is empty or holds special tokens is
                ungrammatical.
        """
        found = torch.full((len(sentences),), -torch.inf, dtype=torch.float64)
        by_length: dict[int, list[int]] = {}
        for i, tokens in enumerate(sentences):
            if len(tokens) and int(tokens.min()) >= N_SPECIAL:
                by_length.setdefault(len(tokens), []).append(i)
        for length, members in by_length.items():
            # bounds the memory of a chart, which holds length ** 2 * n_symbols numbers per sentence
            most = max(1, 2**24 // (length * length * len(self._closure)))
            for begin in range(0, len(members), most):
                chosen = members[begin : begin + most]
                words = torch.stack([sentences[i] for i in chosen]) - N_SPECIAL + self._n
                leaves = self._closure.T[words] * np.exp(self._scale)
                found[torch.tensor(chosen)] = self._chart(leaves).log() - length * self._scale
        return found

    def _chart(self, leaves: Tensor) -> Tensor:
        """Return the probability of each sentence, from those of all symbols at each word, `(n, length, n_symbols)`."""
        length = leaves.shape[1]
        chart = [leaves]  # chart[span - 1][:, i]: probabilities that symbols yield the span of words that begins at i
        for span in range(2, length + 1):
            places = length - span + 1
            products = leaves.new_zeros(len(leaves), places, len(self._lefts))
            for part in range(1, span):
                left = chart[part - 1][:, :places].index_select(2, self._firsts)
                products.addcmul_(left, chart[span - part - 1][:, part:].index_select(2, self._seconds))
            chart.append(products @ self._lift)
        return chart[-1][:, 0, 0]

    def length_probabilities(self, longest: int) -> Tensor:
        """Return the probability of each sentence length from 0 to `longest` words, float64 `(longest + 1,)`."""
        words = self._closure[:, self._n : self._n + self._n_words].sum(1)
        found = torch.zeros(longest + 1, len(self._closure), dtype=torch.float64)
        found[1:2] = words
        for length in range(2, longest + 1):
            # all splits of the words between the two symbols of each pair
            products = found[1:length, self._firsts] * found[1:length, self._seconds].flip(0)
            found[length] = products.sum(0) @ self._lift
        return found[:, 0]


def _closure(chains: list[tuple[float, int, int]], n: int, n_words: int) -> Array:
    """Expected number of times that chains of unary rules lead from a nonterminal to a symbol, `(n, n + n_words)`.

    Args:
        chains: Probability, left side and right side of each unary rule.
        n: Number of nonterminals.
        n_words: Number of words.
    """
    from scipy.sparse import csc_array, eye_array
    from scipy.sparse.linalg import splu

    probabilities, lefts, rights = zip(*chains, strict=True) if chains else ((), (), ())
    one_step = csc_array((probabilities, (lefts, rights)), shape=(n, n + n_words), dtype=np.float64)
    among: Array = splu((eye_array(n) - one_step[:, :n]).tocsc()).solve(np.eye(n))
    return np.hstack([among, among @ one_step[:, n:]])
