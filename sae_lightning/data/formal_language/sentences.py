"""Sentences of a grammar as training data of a language model."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sae_lightning.data.datamodule import SPLIT_SEEDS, SeededDataModule, Split
from sae_lightning.data.formal_language.derivations import Sentences, SentenceSampler
from sae_lightning.data.formal_language.grammar import BEGIN, END, PAD, Grammar
from sae_lightning.data.loading import ActivationLoader, BatchIndices
from sae_lightning.data.seeding import seeded_generator
from sae_lightning.data.streaming import StreamSteps
from sae_lightning.run.shipped import shipped_path


class TokenBatch(NamedTuple):
    """Sentences side by side in rows, as a transformer reads them."""

    tokens: Tensor
    """`BEGIN` and the words of each sentence; `PAD` fills a row; int64 `(n_rows, length)`."""
    targets: Tensor
    """The next token of each, `END` after the last word, `PAD` where there is none; int64 `(n_rows, length)`."""
    positions: Tensor
    """Place of each token in its sentence; int64 `(n_rows, length)`."""
    segments: Tensor
    """Which sentence of the batch each token belongs to, -1 for filling; int64 `(n_rows, length)`."""


def pack(sentences: Sentences, row_length: int) -> TokenBatch:
    """Lay sentences into rows, as many as fit, in their order.

    Args:
        sentences: The sentences.
        row_length: Tokens of a row, more than the words of the longest sentence.

    Raises:
        ValueError: If a sentence does not fit into a row.
    """
    lengths = sentences.lengths()
    longest = int(lengths.max())
    if longest + 1 > row_length:
        raise ValueError(f"row_length must be above the {longest} words of the longest sentence, but is {row_length}")
    rows, columns = [], []
    row, used = 0, 0
    for size in (lengths + 1).tolist():  # each begins with a token of its own
        if used + size > row_length:
            row, used = row + 1, 0
        rows.append(row)
        columns.append(used)
        used += size
    starts = torch.tensor(rows) * row_length + torch.tensor(columns)
    words = starts[sentences.sentences] + 1 + sentences.positions()
    n = row + 1
    tokens, targets, positions = (torch.zeros(n * row_length, dtype=torch.int64) for _ in range(3))
    segments = torch.full((n * row_length,), -1)
    tokens[starts], tokens[words] = BEGIN, sentences.tokens
    targets[words - 1], targets[starts + lengths] = sentences.tokens, END
    positions[words] = sentences.positions() + 1
    segments[starts], segments[words] = torch.arange(len(lengths)), sentences.sentences
    assert PAD == 0
    return TokenBatch(*(field.view(n, row_length) for field in (tokens, targets, positions, segments)))


class SentenceStream(Dataset[TokenBatch]):
    """An endless sequence of batches of sentences: item i is the i-th batch that this rank trains on."""

    def __init__(self, sampler: SentenceSampler, batch_size: int, seed: int, rank: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank

    def __getitem__(self, step: int) -> TokenBatch:
        generator = seeded_generator(self.seed, SPLIT_SEEDS["train"], self.rank, step)
        return pack(self.sampler.draw(self.batch_size, generator), self.sampler.max_length + 1)


class SentenceDataset(Dataset[TokenBatch]):
    """Sentences that are held; an index is a tensor of positions, an item is a batch."""

    def __init__(self, sentences: Sentences, row_length: int) -> None:
        self.sentences: Sequence[Tensor] = torch.split(sentences.tokens, sentences.lengths().tolist())
        self._row_length = row_length

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: Tensor) -> TokenBatch:
        if len(index) == 0:  # a rank's share of the last batch
            return TokenBatch(*(torch.zeros(0, self._row_length, dtype=torch.int64) for _ in TokenBatch._fields))
        chosen = [self.sentences[i] for i in index.tolist()]
        lengths = torch.tensor([len(tokens) for tokens in chosen])
        sentences = torch.repeat_interleave(lengths)
        tokens = torch.cat(chosen)
        return pack(Sentences(tokens, sentences, torch.zeros_like(tokens), torch.zeros_like(tokens)), self._row_length)


class SentenceDataModule(SeededDataModule):
    """Sentences of a grammar: endless training batches, and held-out ones that are drawn once.

    Splits are independent draws from one language, so they share probable sentences.

    Args:
        grammar: Text file with the grammar, in nltk's notation; one of the package's configs may be named as
            `configs/formal_language/grammars/english.pcfg` wherever the command runs.
        max_length: Words of the longest sentence; longer ones are drawn anew.
        n_train: Training sentences that count as an epoch, of all processes together.
        n_val: Held-out sentences for validation.
        n_test: Held-out sentences for test and prediction.
        batch_size: Sentences per step and process, at least 1.
        eval_batch_size: Sentences per step and process in validation and test, at least 1.
        seed: Seed of the sentences; None takes the global seed.

    Attributes:
        grammar: The grammar.
        grammar_text: Its text, which a language model keeps.

    Raises:
        ValueError: If an argument is out of range or the grammar is not sound.
    """

    def __init__(
        self,
        grammar: str,
        max_length: int = 63,
        n_train: int = 128_000,
        n_val: int = 2_000,
        n_test: int = 2_000,
        batch_size: int = 128,
        eval_batch_size: int = 512,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        for name, value in {"n_train": n_train, "n_val": n_val, "n_test": n_test}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        self.grammar = Grammar.from_file(shipped_path(grammar))
        self.grammar_text = self.grammar.text
        self.sampler = SentenceSampler(self.grammar, max_length)
        self.max_length = max_length
        self.n_train = n_train
        self._n_held_out: dict[Split, int] = {"val": n_val, "test": n_test}
        self._splits: dict[Split, SentenceDataset] = {}

    def split(self, split: Split) -> SentenceDataset:
        """A held-out split, drawn when it is first asked for.

        Raises:
            ValueError: If it is the training split, which is never held in memory.
        """
        if split not in self._n_held_out:
            raise ValueError("split must be 'val' or 'test', for training sentences are drawn as training goes")
        if split not in self._splits:
            generator = seeded_generator(self.seed, SPLIT_SEEDS[split])
            sentences = self.sampler.draw(self._n_held_out[split], generator)
            self._splits[split] = SentenceDataset(sentences, self.max_length + 1)
        return self._splits[split]

    def train_dataloader(self) -> ActivationLoader:
        """New training batches, from the start of the stream."""
        stream = SentenceStream(self.sampler, self.batch_size, self.seed, self._processes()[0])
        steps = StreamSteps(self._steps_per_epoch(self.n_train), self.batch_size, self._processes()[1])
        return ActivationLoader.of(stream, steps, torch.cuda.is_available())

    def val_dataloader(self) -> ActivationLoader:
        """Every validation sentence once."""
        return self._loader("val")

    def test_dataloader(self) -> ActivationLoader:
        """Every test sentence once."""
        return self._loader("test")

    def predict_dataloader(self) -> ActivationLoader:
        """Every test sentence once, in stored order."""
        return self._loader("test")

    def _loader(self, split: Split) -> ActivationLoader:
        dataset = self.split(split)
        indices = BatchIndices(len(dataset), self.eval_batch_size, *self._processes(), None, drop_last=False)
        return ActivationLoader.of(dataset, indices, torch.cuda.is_available())
