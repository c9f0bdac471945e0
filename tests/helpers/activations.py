"""A host and sources made of plain tensors, whose activations are known in advance, and caches of them."""

import json
import time

import torch
from torch import nn

from sae_lightning.data.activations.blocks import Block
from sae_lightning.data.activations.cache_files import checksum
from sae_lightning.data.activations.harvest import Harvest
from sae_lightning.data.activations.hosts.base import Host, Piece, Rows, stack
from sae_lightning.data.activations.reading import WindowReader
from sae_lightning.data.sources import Source, StreamedSource, TextExample, UnreadableError
from sae_lightning.run.seal import KEY, seal_json

N_WORDS = 5


def value(example, word):
    """What the first layer returns for a word, without its features' offsets."""
    return 100.0 * example + word


class Twice(nn.Module):
    """Two layers: numbers of words with offsets, and twice that."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Identity(), nn.Identity(), nn.Identity()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, numbers):
        x = self.first(numbers[..., None] + torch.arange(4.0) / 8)
        return self.third(self.second(2 * x))


class WordHost(Host[TextExample]):
    """Reads texts such as `12 0 1 2`: the number of the example and its words."""

    batch_size = 16

    def __init__(self, delay: float = 0.0) -> None:
        super().__init__(Twice())
        self.delay = delay

    def pieces(self, examples):
        pieces = []
        for i, example in enumerate(examples):
            number, *words = [int(word) for word in example.text.split()]
            numbers = torch.tensor([value(number, word) for word in words])
            n = len(words)
            rows = Rows(
                torch.arange(n), torch.tensor(example.concepts), torch.arange(n).int(), torch.arange(1, n + 1).int()
            )
            pieces.append(Piece(i, {"numbers": numbers}, n, rows))
        return pieces

    def collate(self, pieces):
        time.sleep(self.delay)
        longest = max(piece.length for piece in pieces)
        filled = [nn.functional.pad(piece.inputs["numbers"], (0, longest - piece.length)) for piece in pieces]
        return stack([Piece(0, {"numbers": row}, longest, None) for row in filled])


def example(index, n_documents):
    n = 1 + index % N_WORDS
    text = " ".join(str(i) for i in (index, *range(n)))
    return TextExample(f"doc{index % n_documents}", text, concepts=tuple((index + word) % 3 for word in range(n)))


class Numbers(Source[TextExample]):
    """`n` examples of 1 to 5 words, in documents."""

    def __init__(self, n: int = 100, n_documents: int = 20, broken: list[int] | None = None) -> None:
        self.n, self.n_documents, self.broken = n, n_documents, broken or []
        self.concept_names = ["a", "b", "c"]

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        if index in self.broken:
            raise UnreadableError(f"broken{index}", "as the test wants it")
        return example(index, self.n_documents)


class NumberStream(StreamedSource[TextExample]):
    """The same, one after the other."""

    def __init__(self, n: int = 100, n_documents: int = 20) -> None:
        self.n, self.n_documents = n, n_documents
        self.concept_names = ["a", "b", "c"]

    def read(self, start):
        return (example(index, self.n_documents) for index in range(start, self.n))


def expected(n, layer="first"):
    """All activations of `n` examples, sorted, `(n_words, 4)`."""
    rows = [value(index, word) for index in range(n) for word in range(1 + index % N_WORDS)]
    x = torch.tensor(rows)[:, None] + torch.arange(4.0) / 8
    return x if layer == "first" else 2 * x


def in_order(x):
    """Rows sorted by their first feature."""
    return x[x[:, 0].argsort()]


def forged(path, change):
    """Change what a sealed file says, with the right checksum: `change` alters the content or returns another."""
    content = json.loads(path.read_text())
    del content[KEY]
    path.write_bytes(seal_json(change(content) or content))


def block(n, d_in=4, dtype=torch.float32, n_concepts=3):
    """A block of random activations, labeled at random."""
    generator = torch.Generator().manual_seed(n)
    x = torch.randn(n, d_in, generator=generator).to(dtype)
    concepts = torch.randint(-1, n_concepts, (n,), generator=generator)
    numbers = torch.arange(n)
    return Block(x, concepts, numbers, numbers.int(), numbers.int() + 1)


def chunk_of(path, digests, rows):
    """What a manifest says of a chunk."""
    return {
        "file": f"x/train/{path.name}",
        "rows": rows,
        "bytes": path.stat().st_size,
        "sha256": checksum(path),
        "blocks": digests,
    }


def harvest(folder, source=None, layers=("first", "second"), max_samples=None, devices=None, delay=0.0, **changes):
    """Harvest a source, by default Numbers, into a folder; returns the folder."""
    reader = WindowReader(WordHost(delay), source or Numbers(), list(layers), **{"window_size": 12, **changes})
    reader.host.init_args["delay"] = 0.0  # no part of what the cache is made of
    Harvest(reader, folder, max_samples, devices).run()
    return folder


def stored(folder, layer="first", dtype=None):
    """All that a cache holds of a layer, as litdata alone reads it."""
    import litdata

    parts = []
    for split in ("train", "val", "test"):
        dataset = litdata.StreamingDataset(str(folder / layer / split))
        parts += [dataset[i] for i in range(len(dataset))]
    blocks = [part[0] if dtype is None else part[0].view(dtype) for part in parts]
    return torch.cat(blocks), *(torch.cat(values) for values in list(zip(*parts, strict=True))[1:])
