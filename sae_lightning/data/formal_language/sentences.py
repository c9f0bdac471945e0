"""Data module of a grammar's sentences, for the training of a language model."""

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
    """Sentences packed into rows, the input of a transformer."""

    tokens: Tensor
    """`BEGIN` and the words of each sentence, padded with `PAD`; int64 `(n_rows, length)`."""
    targets: Tensor
    """Next token at each position, `END` after the last word, `PAD` for padding; int64 `(n_rows, length)`."""
    positions: Tensor
    """Position of each token in its sentence; int64 `(n_rows, length)`."""
    segments: Tensor
    """Index of each token's sentence in the batch, -1 for padding; int64 `(n_rows, length)`."""


def pack(sentences: Sentences, row_length: int) -> TokenBatch:
    """Pack sentences into rows, in their order, as many per row as fit.

    Args:
        sentences: The sentences.
        row_length: Tokens per row, more than the longest sentence has words.

    Raises:
        ValueError: If a sentence does not fit into a row.

    Example:
        >>> import torch
        >>> from sae_lightning.data.formal_language.derivations import Sentences
        >>> from sae_lightning.data.formal_language.sentences import pack
        >>> words = torch.tensor([3, 4, 5])  # two sentences, of two words and one
        >>> pack(Sentences(words, torch.tensor([0, 0, 1]), words, words), row_length=6).tokens
        tensor([[1, 3, 4, 1, 5, 0]])
    """
    lengths = sentences.lengths()
    longest = int(lengths.max())
    if longest + 1 > row_length:
        raise ValueError(f"row_length must be above the {longest} words of the longest sentence, but is {row_length}")
    rows, columns = [], []
    row, used = 0, 0
    for size in (lengths + 1).tolist():  # BEGIN and the words
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
    """Endless sequence of batches of sentences: item i is the i-th training batch of this rank.

    Args:
        sampler: Draws sentences.
        batch_size: Sentences per batch.
        seed: Seed of the stream.
        rank: Rank of this process; the ranks' streams are independent.
    """

    def __init__(self, sampler: SentenceSampler, batch_size: int, seed: int, rank: int) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank

    def __getitem__(self, step: int) -> TokenBatch:
        generator = seeded_generator(self.seed, SPLIT_SEEDS["train"], self.rank, step)
        return pack(self.sampler.draw(self.batch_size, generator), self.sampler.max_length + 1)


class SentenceDataset(Dataset[TokenBatch]):
    """Sentences in memory, indexed by a tensor of positions: an item is a whole batch.

    Args:
        sentences: The sentences.
        row_length: Tokens per row of a batch.
    """

    def __init__(self, sentences: Sentences, row_length: int) -> None:
        self.sentences: Sequence[Tensor] = torch.split(sentences.tokens, sentences.lengths().tolist())
        self._row_length = row_length

    def __len__(self) -> int:
        return len(self.sentences)

    def __getitem__(self, index: Tensor) -> TokenBatch:
        if len(index) == 0:  # a rank may have no sample of the last batch
            return TokenBatch(*(torch.zeros(0, self._row_length, dtype=torch.int64) for _ in TokenBatch._fields))
        chosen = [self.sentences[i] for i in index.tolist()]
        lengths = torch.tensor([len(tokens) for tokens in chosen])
        sentences = torch.repeat_interleave(lengths)
        tokens = torch.cat(chosen)
        return pack(Sentences(tokens, sentences, torch.zeros_like(tokens), torch.zeros_like(tokens)), self._row_length)


class SentenceDataModule(SeededDataModule):
    """Sentences of a grammar: endless training batches, and held-out splits that are drawn once.

    Splits are independent draws from one language, so they share probable sentences.

    Args:
        grammar: Text file of the grammar, in NLTK's notation. The package's own can be named from any folder, as in
            `configs/formal_language/grammars/english.pcfg`.
        max_length: Maximum number of words; longer sentences are rejected.
        n_train: Training sentences that count as an epoch, over all processes.
        n_val: Number of held-out sentences for validation.
        n_test: Number of held-out sentences for test and prediction.
        batch_size: Sentences per step and process, at least 1.
        eval_batch_size: Sentences per step and process in validation and test, at least 1.
        seed: Seed of the sentences; None takes the global seed.

    Attributes:
        grammar: The grammar.
        grammar_text: Text of the grammar, which a language model saves.

    Raises:
        ValueError: If an argument is out of range or the grammar is not valid.

    Example:
        >>> from sae_lightning import SentenceDataModule
        >>> data = SentenceDataModule("configs/formal_language/grammars/dyck.pcfg", max_length=15, batch_size=2, seed=0)
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch.tokens.shape[1], batch.segments.unique()[-2:]  # rows of 16 tokens, two sentences
        (16, tensor([0, 1]))
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
        """Return a held-out split, which is drawn on first use.

        Raises:
            ValueError: If it is the training split, which is never held in memory.
        """
        if split not in self._n_held_out:
            raise ValueError(
                "split must be 'val' or 'test', because training sentences are generated on demand; read "
                "train_dataloader() instead"
            )
        if split not in self._splits:
            generator = seeded_generator(self.seed, SPLIT_SEEDS[split])
            sentences = self.sampler.draw(self._n_held_out[split], generator)
            self._splits[split] = SentenceDataset(sentences, self.max_length + 1)
        return self._splits[split]

    def train_dataloader(self) -> ActivationLoader:
        """Return a loader of the stream of training batches."""
        stream = SentenceStream(self.sampler, self.batch_size, self.seed, self._processes()[0])
        steps = StreamSteps(self._steps_per_epoch(self.n_train), self.batch_size, self._processes()[1])
        return ActivationLoader.of(stream, steps, torch.cuda.is_available())

    def val_dataloader(self) -> ActivationLoader:
        """Return a loader of all validation sentences."""
        return self._loader("val")

    def test_dataloader(self) -> ActivationLoader:
        """Return a loader of all test sentences."""
        return self._loader("test")

    def predict_dataloader(self) -> ActivationLoader:
        """Return a loader of all test sentences, in stored order."""
        return self._loader("test")

    def _loader(self, split: Split) -> ActivationLoader:
        dataset = self.split(split)
        indices = BatchIndices(len(dataset), self.eval_batch_size, *self._processes(), None, drop_last=False)
        return ActivationLoader.of(dataset, indices, torch.cuda.is_available())
