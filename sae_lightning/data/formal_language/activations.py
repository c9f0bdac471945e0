"""Activations of a language model that was trained on a grammar, labeled by the derivation of each word."""

import os
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sae_lightning.data.activations.hosts.spliced import HostBatch, SplicedHost
from sae_lightning.data.activations.layers import activations_at, find_layer
from sae_lightning.data.batch import ActivationBatch, joined, taken
from sae_lightning.data.datamodule import SPLIT_SEEDS, Split
from sae_lightning.data.formal_language.derivations import Sentences, SentenceSampler
from sae_lightning.data.formal_language.grammar import BEGIN, N_SPECIAL, PAD, Grammar
from sae_lightning.data.formal_language.sentences import TokenBatch, pack
from sae_lightning.data.loading import ActivationDataset, ActivationLoader, BatchIndices
from sae_lightning.data.seeding import seeded_generator
from sae_lightning.data.streaming import BatchSampler, StreamingDataModule
from sae_lightning.run.checkpoint import CHECKPOINT_KEY, read_checkpoint
from sae_lightning.run.shipped import shipped_path
from sae_lightning.subjects.transformer import Transformer

_FIDELITY = 10  # separates the random stream of the sentences for fidelity from those of the splits
_HOST_SENTENCES = 256  # per forward pass


class Concepts:
    r"""Assigns concepts to words: by the nonterminal that yields a word, by its depth, or by its position.

    Args:
        grammar: The grammar.
        labels: The nonterminals of each concept, by its name; or `parent` (each nonterminal that yields words is a
            concept), `depth` (the number of `nesting` nonterminals above a word), or `position` (that in the sentence).
        nesting: Nonterminals that count for `depth`.
        n_levels: Number of concepts for `depth` and `position`; the last one holds all higher values.

    Attributes:
        names: Names of the concepts, in the order of their labels.

    Raises:
        ValueError: If the grammar lacks a symbol, a symbol belongs to two concepts, or an argument is missing.

    Example:
        >>> import torch
        >>> from sae_lightning.data import Grammar
        >>> from sae_lightning.data.formal_language.activations import Concepts
        >>> from sae_lightning.data.formal_language.derivations import SentenceSampler
        >>> grammar = Grammar("S -> A B [1.0]\nA -> 'a' [1.0]\nB -> 'b' [1.0]")
        >>> concepts = Concepts(grammar, "parent", nesting=[], n_levels=5)
        >>> concepts.names, concepts.of(SentenceSampler(grammar, 5).draw(2, torch.Generator()))
        (['A', 'B'], tensor([0, 1, 0, 1]))
    """

    def __init__(
        self,
        grammar: Grammar,
        labels: Mapping[str, list[str]] | Literal["parent", "depth", "position"],
        nesting: list[str],
        n_levels: int,
    ) -> None:
        if n_levels < 1:
            raise ValueError(f"n_levels must be at least 1, but is {n_levels}")
        if isinstance(labels, str) and labels not in ("parent", "depth", "position"):
            raise ValueError(f"concepts must be a mapping, 'parent', 'depth' or 'position', but is {labels!r}")
        self._kind = labels if isinstance(labels, str) else "parent"
        self._n_levels = n_levels
        if self._kind == "parent":
            n = len(grammar.nonterminals)
            yielding = sorted({rule.left for rule in grammar.rules if max(rule.right) >= n})
            if isinstance(labels, str):
                labels = {grammar.nonterminals[i]: [grammar.nonterminals[i]] for i in yielding}
            self.names = list(labels)
            self._of_symbol = torch.full((n,), -1)
            index = {name: i for i, name in enumerate(grammar.nonterminals)}
            for concept, symbol in ((i, s) for i, symbols in enumerate(labels.values()) for s in symbols):
                if symbol not in index:
                    raise ValueError(
                        f"concepts must name nonterminals of the grammar, {list(index)}, but name {symbol!r}"
                    )
                if self._of_symbol[index[symbol]] != -1:
                    raise ValueError(f"each nonterminal must belong to one concept, but {symbol!r} belongs to two")
                self._of_symbol[index[symbol]] = concept
        elif self._kind == "depth" and not nesting:
            raise ValueError("nesting must name the nonterminals that count for concepts = 'depth', but is empty")
        else:
            first = 1 if self._kind == "depth" else 0
            self.names = [f"{self._kind} {first + i}" for i in range(n_levels)]
            self.names[-1] += "+"

    def of(self, sentences: Sentences) -> Tensor:
        """Return the concept of each word, -1 for none, int64 `(n_words,)`."""
        if self._kind == "parent":
            return self._of_symbol[sentences.parents]
        if self._kind == "depth":
            return (sentences.depths - 1).clamp(max=self._n_levels - 1)
        return sentences.positions().clamp(max=self._n_levels - 1)


class WordActivations:
    """Sampler for streams: draws sentences and returns the activations of their words.

    Args:
        model: The language model.
        layer: Name of the layer.
        sampler: Draws sentences.
        concepts: Labels their words.
        words_per_sentence: Expected number of words of a sentence.
    """

    def __init__(
        self, model: Transformer, layer: str, sampler: SentenceSampler, concepts: Concepts, words_per_sentence: float
    ) -> None:
        self.model = model
        self.layer = layer
        self.sampler = sampler
        self.concepts = concepts
        self.words_per_sentence = words_per_sentence

    def __call__(self, n: int, generator: torch.Generator) -> ActivationBatch:
        """Return the activations of `n` words, from as many sentences as necessary."""
        parts: list[ActivationBatch] = []
        missing = n
        while missing > 0:
            sentences = self.sampler.draw(int(missing / self.words_per_sentence) + 8, generator)
            part = self.of(sentences)
            parts.append(taken(part, slice(missing)))
            missing -= len(part.activations)
        if len(parts) == 1:
            return parts[0]
        return joined(parts)

    def of(self, sentences: Sentences) -> ActivationBatch:
        """Return the activations of the words of sentences, in their order."""
        batch = pack(sentences, self.sampler.max_length + 1)
        device = self.model.norm.weight.device
        inputs = (t.to(device) for t in (batch.tokens, batch.positions, batch.segments))
        found = activations_at(self.model, self.layer, *inputs).cpu()
        return ActivationBatch(found[is_word(batch)].float(), self.concepts.of(sentences))


def is_word(batch: TokenBatch) -> Tensor:
    """Return the mask of words in a batch, bool `(n_rows, length)`: neither padding nor `BEGIN`."""
    return (batch.tokens != PAD) & (batch.tokens != BEGIN)


def read_language_model(path: str | os.PathLike[str]) -> tuple[Transformer, Grammar]:
    """Load the transformer and the grammar of a LanguageModel's checkpoint.

    Raises:
        ValueError: If the file cannot be read or is not a checkpoint of a LanguageModel.
    """
    try:
        checkpoint = read_checkpoint(path)
        saved: dict[str, Any] = checkpoint[CHECKPOINT_KEY]["init_args"]
        grammar = Grammar(saved["grammar_text"], f"the grammar in {os.fspath(path)}")
        sizes = {key: saved[key] for key in ("width", "n_layers", "n_heads", "n_positions")}
        model = Transformer(N_SPECIAL + len(grammar.words), **sizes)
        prefix = "transformer."
        weights = checkpoint["state_dict"].items()
        model.load_state_dict({key.removeprefix(prefix): value for key, value in weights if key.startswith(prefix)})
    except FileNotFoundError:
        raise ValueError(
            f"checkpoint must be a file, but there is none at {os.fspath(path)!r}: train a language model first "
            "(sae-lightning fit -c configs/formal_language/gpt.yaml)"
        ) from None  # the original error adds nothing
    except Exception as error:  # invalid arguments raise many types of errors in constructors
        raise ValueError(
            f"checkpoint {os.fspath(path)!r} must be one of a LanguageModel, but is not: {error}"
        ) from None
    return model.eval().requires_grad_(False), grammar


class FormalLanguageDataModule(StreamingDataModule):
    """Activations of words at a layer of a language model, on sentences of the grammar that it was trained on.

    The special tokens at the beginning and end of a sentence are left out. Training activations are computed on demand,
    or once and kept in memory. Splits are independent draws from one language, so they share probable sentences.

    Args:
        checkpoint: Checkpoint of a LanguageModel.
        layer: Name of a layer: `embed`, `blocks.0` (the residual stream after the first block), `blocks.0.mlp`, ...
        concepts: The nonterminals of each concept, by its name; or `parent` (each nonterminal that yields words is a
            concept), `depth` (the number of `nesting` nonterminals above a word), or `position` (that in the sentence).
        nesting: Nonterminals that count for `concepts: depth`.
        n_levels: Number of concepts for `depth` and `position`; the last one holds all higher values.
        grammar: Text file of the grammar, which must equal the checkpoint's; None does not check.
        max_length: Maximum number of words; longer sentences are rejected.
        in_memory: Number of training activations that are computed once, kept in memory and shuffled every epoch; None
            computes new ones on demand.
        n_train: Training activations that count as an epoch if `in_memory` is None.
        n_val: Number of held-out activations for validation.
        n_test: Number of held-out activations for test and prediction.
        n_fidelity: Number of sentences on which the test measures the model's loss with reconstructed activations.
        batch_size: Training activations per step and process, at least 1.
        eval_batch_size: Activations per step and process in validation, test and prediction, at least 1.
        seed: Seed of the sentences; None takes the global seed.

    Raises:
        ValueError: If an argument is out of range, or the checkpoint is not one of a LanguageModel with this grammar.

    References:
        Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822, section on formal languages.
    """

    def __init__(
        self,
        checkpoint: str,
        layer: str = "blocks.0",
        concepts: dict[str, list[str]] | Literal["parent", "depth", "position"] = "parent",
        nesting: list[str] | None = None,
        n_levels: int = 5,
        grammar: str | None = None,
        max_length: int = 63,
        in_memory: int | None = None,
        n_train: int = 1_024_000,
        n_val: int = 8_192,
        n_test: int = 8_192,
        n_fidelity: int = 1_000,
        batch_size: int = 1_024,
        eval_batch_size: int = 4_096,
        seed: int | None = None,
    ) -> None:
        sizes = {"in_memory": in_memory, "n_train": n_train, "n_val": n_val, "n_test": n_test, "n_fidelity": n_fidelity}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        self.model, self.grammar = read_language_model(checkpoint)
        if grammar is not None and not self.grammar.same_as(Grammar.from_file(shipped_path(grammar))):
            raise ValueError(f"checkpoint must be of the grammar {grammar!r}, but {checkpoint!r} is of another one")
        find_layer(self.model, layer)
        if max_length + 1 > self.model.n_positions:
            raise ValueError(
                f"max_length must be below the model's n_positions = {self.model.n_positions}, but is {max_length}"
            )
        self._sampler = SentenceSampler(self.grammar, max_length, nesting or [])
        labels = Concepts(self.grammar, concepts, nesting or [], n_levels)
        self.layer = layer
        self._words = WordActivations(self.model, layer, self._sampler, labels, self.grammar.expected_length)
        d_in = self._words(1, seeded_generator(0)).activations.shape[-1]
        super().__init__(d_in, labels.names, in_memory or n_train, batch_size, eval_batch_size, 0, seed)
        self._in_memory = in_memory
        self._n_fidelity = n_fidelity
        self._n_held_out: dict[Split, int] = {"val": n_val, "test": n_test}

    def setup(self, stage: str | None = None) -> None:
        """Broadcast the seed of rank 0, and move the language model to the SAE's device."""
        super().setup(stage)
        if self.trainer is not None:
            self.model.to(self.trainer.strategy.root_device)

    def sampler(self) -> BatchSampler:
        """Return the function that draws sentences and computes the activations of their words."""
        return self._words

    def make_split(self, split: Split) -> ActivationDataset:
        """Draw one held-out split."""
        return self._drawn(split, self._n_held_out[split])

    def _drawn(self, split: Split, n: int) -> ActivationDataset:
        generator = seeded_generator(self.seed, SPLIT_SEEDS[split])
        sizes = [min(65_536, n - begin) for begin in range(0, n, 65_536)]
        parts = [self._words(size, generator) for size in sizes]
        whole = joined(parts)
        return ActivationDataset(whole.activations, whole.concepts)

    def train_dataloader(self) -> ActivationLoader:
        """Return a loader of new training batches, or of those in memory in a new order every epoch."""
        if self._in_memory is None:
            return super().train_dataloader()
        self._steps_per_epoch(self._in_memory)
        if self._kept is None:
            self._kept = self._drawn("train", self._in_memory)
        indices = BatchIndices(len(self._kept), self.batch_size, *self._processes(), self.seed, drop_last=True)
        return ActivationLoader.of(self._kept, indices, pin_memory=torch.cuda.is_available())

    _kept: ActivationDataset | None = None

    def host(self) -> SplicedHost:
        """Return the language model with sentences on which to measure downstream fidelity.

        The sentences are drawn independently of all splits, but may overlap with them: probable sentences recur.
        """
        batches = []
        for i in range(-(-self._n_fidelity // _HOST_SENTENCES)):
            n = min(_HOST_SENTENCES, self._n_fidelity - i * _HOST_SENTENCES)
            sentences = self._sampler.draw(n, seeded_generator(self.seed, _FIDELITY, i))
            batch = pack(sentences, self._sampler.max_length + 1)
            targets = batch.targets.masked_fill(batch.targets == PAD, -1)
            batches.append(HostBatch((batch.tokens, batch.positions, batch.segments), is_word(batch), targets))
        return SplicedHost(self.model, self.layer, batches, self.split("test").activations.mean(0))
