"""What harvesting costs beyond the model's own forward pass, and what reading the cache costs a training step.

The model has MiniLM's sizes and random weights, the texts are sentences of random words: nothing is downloaded.
"""

import contextlib
import io
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.loading import share_of_fetching
from sae_lightning.data import CachedDataModule
from sae_lightning.data.activations.harvest import Harvest
from sae_lightning.data.activations.hosts import TextHost
from sae_lightning.data.activations.reading import WindowReader
from sae_lightning.data.sources import Source, TextExample
from sae_lightning.modules import TopKSAE

LAYER = "encoder.layer.2"
_WINDOW = 512
_SYLLABLES = ["ka", "lo", "mi", "nu", "te", "ra", "so", "vi", "be", "du"]


def make_model(folder: Path, hidden: int, layers: int) -> None:
    """A folder with a random BERT and a tokenizer of about a thousand words and their pieces."""
    import transformers

    words = [a + b + c for a in _SYLLABLES for b in _SYLLABLES for c in _SYLLABLES]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *(f"##{s}" for s in _SYLLABLES)]
    (folder / "vocab.txt").write_text("\n".join(vocabulary))
    tokenizer = transformers.BertTokenizerFast(str(folder / "vocab.txt"))
    tokenizer.model_max_length = 512
    tokenizer.save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=max(1, hidden // 32),
        intermediate_size=4 * hidden,
    )
    transformers.BertModel(config).save_pretrained(folder)


class Sentences(Source[TextExample]):
    """Sentences of 5 to 40 random words with random labels."""

    def __init__(self, n: int) -> None:
        self.n = n
        self.concept_names = [str(i) for i in range(12)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> TextExample:
        draw = random.Random(index)
        words = ["".join(draw.choices(_SYLLABLES, k=draw.choice([3, 3, 3, 4]))) for _ in range(draw.randint(5, 40))]
        ends, at = [], -1
        for word in words:
            at += 1 + len(word)
            ends.append(at)
        spans = tuple((end - len(word), end) for end, word in zip(ends, words, strict=True))
        return TextExample(f"d{index}", " ".join(words), spans, tuple(draw.choices(range(12), k=len(words))))


def harvest_results(repeats: int, quick: bool) -> Iterator[dict[str, Any]]:
    """Harvests, each timed in turn with the forward passes alone on the same batches; then training from a cache."""
    windows, hidden, layers = (2, 16, 3) if quick else (6, 384, 6)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "model").mkdir()
        make_model(folder / "model", hidden, layers)
        host = TextHost(str(folder / "model"))
        reader = WindowReader(host, Sentences(windows * _WINDOW), [LAYER], _WINDOW)
        batches = [batch for w in range(windows) for batch in reader.prepare(w).batches]  # type: ignore[union-attr]
        tokens = sum(piece.length for batch in batches for piece in batch)
        ratios, rates = [], []
        for i in range(repeats + 1):
            begin = time.perf_counter()
            for batch in batches:
                host.forward(batch, [LAYER])
            middle = time.perf_counter()
            with contextlib.redirect_stderr(io.StringIO()):
                Harvest(reader, folder / f"cache{i}").run()
            end = time.perf_counter()
            if i > 0:  # the first is for warming up
                ratios.append((end - middle) / (middle - begin))
                rates.append(tokens / (end - middle))
        low, median, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        yield {
            "data": f"harvest of {windows} windows, {tokens:,} tokens",
            "ratio": [low, median, high],
            "tokens_per_second": statistics.median(rates),
        }


def cached_share(steps: int, quick: bool) -> dict[str, Any]:
    """The share of a training step that goes into reading the cache, for the shape whose step is the shortest."""
    d_in, batch, d_sae, k = (8, 64, 32, 4) if quick else (128, 2048, 512, 16)
    from sae_lightning.data.activations.cache import CacheWriter
    from sae_lightning.data.activations.hosts.base import Read

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "cache")
        host = {"class_path": "none", "init_args": {}, "crop": None}
        writer = CacheWriter(folder, {"host": host, "source": host, "layers": ["x"], "dtype": "float32"}, [])
        for shard in range(8):
            n = 4 * batch
            none = torch.full((n,), -1)
            read = Read({"x": torch.randn(n, d_in)}, none, torch.arange(n), none.int(), none.int())
            writer.write(
                shard, {"train": read, "val": read, "test": read}, examples=n, tokens=n, skipped=[], unaligned=0
            )
        writer.finish(complete=True, n_shards=8)
        data = CachedDataModule(str(folder), batch_size=batch, n_val=batch, seed=0)
        return share_of_fetching(data, TopKSAE(d_in, d_sae=d_sae, k=k), steps)
