"""How well a language model knows its grammar."""

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
    """Compares a language model's loss with its floor, and counts the sentences it makes that are grammatical.

    In validation and test it logs, next to the loss in nats per token,

    - `entropy_floor`: what a model that knows the grammar would lose on the same sentences,
      `-log P(sentence | not too long)` per word and end, summed over all derivations of each;
    - `excess_loss`: loss minus floor;
    - `grammatical`: the share of sentences drawn from the model that the grammar yields.

    Args:
        n_samples: Sentences drawn from the model, at least 1.

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
    """Mean `-log P` per token of sentences of at most `max_length` words, ends of sentences included, in nats."""
    fitting = float(inside.length_probabilities(max_length).sum())
    n_tokens = sum(len(tokens) + 1 for tokens in sentences)
    total = float(inside.log_probabilities(sentences).sum()) - len(sentences) * math.log(fitting)
    return -total / n_tokens


def share_grammatical(inside: Inside, drawn: torch.Tensor) -> float:
    """The share of drawn rows `(n, length)` that end and that the grammar yields."""
    ended = (drawn == END).any(1)
    lengths = torch.where(ended, (drawn == END).int().argmax(1), drawn.shape[1]).tolist()
    found = inside.log_probabilities([row[:length] for row, length in zip(drawn, lengths, strict=True)])
    return float((ended & found.isfinite()).float().mean())
