"""Callback that measures how well a language model has learned its grammar."""

import math

import lightning.pytorch as pl
import torch

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.callbacks.data import HasSentences, data_of
from sae_lightning.data.formal_language.grammar import BEGIN, END
from sae_lightning.data.formal_language.inside import Inside
from sae_lightning.data.seeding import seeded_generator
from sae_lightning.subjects.language_model import LanguageModel


class GrammarReport(RunCallback):
    """Logs a language model's excess loss over the entropy floor, and the fraction of grammatical samples.

    In validation and test, it logs

    - `entropy_floor`: loss of a model with perfect knowledge of the grammar on the same sentences, in nats per token:
      `-log P(sentence | not too long)`, with P summed over all derivations, per word and end of sentence;
    - `excess_loss`: loss minus floor;
    - `grammatical`: fraction of sentences sampled from the model that the grammar yields.

    Args:
        n_samples: Number of sentences to sample from the model, at least 1.

    Raises:
        ValueError: If `n_samples` is below 1.
    """

    key = "grammar"
    serves = LanguageModel

    def __init__(self, n_samples: int = 500) -> None:
        if n_samples < 1:
            raise ValueError(f"n_samples must be at least 1, but is {n_samples}")
        self.n_samples = n_samples
        self._floors: dict[str, float] = {}

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report on the validation sentences."""
        self._report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report on the test sentences."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, LanguageModel)
        data = data_of(trainer)
        inside = Inside(pl_module.grammar)
        if isinstance(data, HasSentences):
            if stage not in self._floors:
                held_out = data.split("val" if stage == "val" else "test").sentences
                self._floors[stage] = entropy_floor(inside, list(held_out), data.max_length)
            loss = float(trainer.callback_metrics[f"{stage}/loss"])
            pl_module.log(f"{stage}/entropy_floor", self._floors[stage])
            pl_module.log(f"{stage}/excess_loss", loss - self._floors[stage])
        generator = seeded_generator(0, trainer.global_step)
        drawn = pl_module.transformer.generate(self.n_samples, BEGIN, END, generator).cpu()
        pl_module.log(f"{stage}/grammatical", share_grammatical(inside, drawn))


def entropy_floor(inside: Inside, sentences: list[torch.Tensor], max_length: int) -> float:
    """Return the mean of `-log P` per token, ends of sentences included, in nats.

    Args:
        inside: The inside algorithm of the grammar.
        sentences: Tokens of each sentence, int64 `(n_words,)`.
        max_length: Maximum number of words, on which P is conditioned.

    Example:
        >>> from sae_lightning.data import Grammar
        >>> from sae_lightning.data.formal_language.inside import Inside
        >>> from sae_lightning.callbacks.grammar import entropy_floor
        >>> grammar = Grammar("S -> 'a' [0.5] | 'b' [0.5]")
        >>> round(entropy_floor(Inside(grammar), [grammar.encode("a")], max_length=1), 4)  # log(2) / 2 tokens
        0.3466
    """
    fitting = float(inside.length_probabilities(max_length).sum())
    n_tokens = sum(len(tokens) + 1 for tokens in sentences)
    total = float(inside.log_probabilities(sentences).sum()) - len(sentences) * math.log(fitting)
    return -total / n_tokens


def share_grammatical(inside: Inside, drawn: torch.Tensor) -> float:
    """Return the fraction of rows `(n, length)` that end and that the grammar yields.

    Example:
        >>> import torch
        >>> from sae_lightning.data import Grammar
        >>> from sae_lightning.data.formal_language.grammar import END
        >>> from sae_lightning.data.formal_language.inside import Inside
        >>> from sae_lightning.callbacks.grammar import share_grammatical
        >>> grammar = Grammar("S -> 'a' [1.0]")
        >>> share_grammatical(Inside(grammar), torch.tensor([[3, END, END], [3, 3, END]]))
        0.5
    """
    ended = (drawn == END).any(1)
    lengths = torch.where(ended, (drawn == END).int().argmax(1), drawn.shape[1]).tolist()
    found = inside.log_probabilities([row[:length] for row, length in zip(drawn, lengths, strict=True)])
    return float((ended & found.isfinite()).float().mean())
