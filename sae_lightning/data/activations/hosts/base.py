"""A model whose activations are read, and what it takes to read them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple

import torch
from torch import Tensor, nn

from sae_lightning.data.activations.layers import activations_of, find_layer
from sae_lightning.data.sources.base import Example_co
from sae_lightning.nn.parts import Recorded


class Piece(NamedTuple):
    """What a model reads of an example in one go: all of it, or a part of a long one."""

    example: int
    """Which of the examples that were given it belongs to."""
    inputs: dict[str, Tensor]
    """Arguments of the model, without the dimension of the batch."""
    length: int
    """Tokens that it costs the model."""
    rows: "Rows | None"
    """Which of its tokens are wanted; None leaves that to the layer's output."""


class Rows(NamedTuple):
    """The tokens of a piece that are wanted, `n` of them."""

    places: Tensor
    """Where they are among the piece's tokens, int64 `(n,)`; or `(n, n_averaged)`, whose mean is wanted."""
    concepts: Tensor
    """Concept of each, -1 for none, int64 `(n,)`."""
    starts: Tensor
    """First character of each, or the number of a patch; -1 for the whole example, int32 `(n,)`."""
    ends: Tensor
    """Behind the last character of each, or how many patches there are; -1 for the whole example, int32 `(n,)`."""


class Read(NamedTuple):
    """Activations that were read, with what is known of each."""

    activations: dict[str, Tensor]
    """By layer, `(n, d_in)`."""
    concepts: Tensor
    """Concept, -1 for none, int64 `(n,)`."""
    examples: Tensor
    """Which example, int64 `(n,)`."""
    starts: Tensor
    """As in `Rows`, int32 `(n,)`."""
    ends: Tensor
    """As in `Rows`, int32 `(n,)`."""


class Host(Recorded, ABC, Generic[Example_co]):
    """A model whose activations are read.

    Subclasses turn examples into pieces that the model reads, and say which of its tokens are wanted.

    Args:
        model: The model; it is put into evaluation mode.

    Attributes:
        model: The model.
        unaligned: Labelled words for which no token was found so far.
        batch_size: Tokens or images that it reads at a time where nothing else is said.
        unit: Which of the two.
        crop: Where images are cropped to a square before they are read, its side as a share of their shorter one.
    """

    crop: float | None = None
    unaligned = 0
    batch_size = 64
    unit = "tokens"

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    @abstractmethod
    def pieces(self, examples: Sequence[Example_co]) -> list[Piece]:
        """What the model reads of some examples."""

    @abstractmethod
    def collate(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """The model's arguments for several pieces at once, by name; the one without a name is its first."""

    def rows(self, piece: Piece, n_tokens: int) -> Rows:
        """The wanted tokens of a piece, of which a layer returns `n_tokens`."""
        assert piece.rows is not None
        return piece.rows

    def check(self, layers: Sequence[str]) -> None:
        """See whether the model has these layers.

        Raises:
            ValueError: If it lacks one; the message lists those that there are.
        """
        if not layers:
            raise ValueError("layers must name at least one layer of the model, but is empty")
        for layer in layers:
            find_layer(self.model, layer)

    def forward(self, pieces: Sequence[Piece], layers: Sequence[str]) -> dict[str, Tensor]:
        """The activations of all tokens of some pieces, by layer, `(n_pieces, n_tokens, d_in)`."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.collate(pieces).items()}
        first = [inputs.pop("")] if "" in inputs else []
        found = activations_of(self.model, layers, *first, **inputs)
        return {layer: as_tokens(found[layer], len(pieces), layer) for layer in layers}

    def read(self, pieces: Sequence[Piece], layers: Sequence[str], dtype: torch.dtype) -> Read:
        """The activations of the wanted tokens of some pieces, of the given type, on the CPU.

        Raises:
            ValueError: If layers return different numbers of tokens, which have no labels in common.
        """
        found = self.forward(pieces, layers)
        numbers = {layer: x.shape[1] for layer, x in found.items()}
        if len(set(numbers.values())) > 1:
            raise ValueError(f"layers must return equally many tokens, but return {numbers}: harvest them one by one")
        rows = [self.rows(piece, next(iter(numbers.values()))) for piece in pieces]
        counts = torch.tensor([len(r.concepts) for r in rows])
        owners = torch.arange(len(pieces)).repeat_interleave(counts)
        examples = torch.tensor([piece.example for piece in pieces]).repeat_interleave(counts)
        activations = {}
        for layer, x in found.items():
            if rows[0].places.ndim == 2:
                chosen = torch.cat([x[i, r.places].float().mean(1) for i, r in enumerate(rows)])
            else:
                places = torch.cat([r.places for r in rows])
                chosen = x[owners.to(x.device), places.to(x.device)]
            activations[layer] = chosen.to(dtype).cpu()
        return Read(
            activations,
            torch.cat([r.concepts for r in rows]),
            examples,
            torch.cat([r.starts for r in rows]),
            torch.cat([r.ends for r in rows]),
        )


def as_tokens(output: Tensor, n: int, layer: str) -> Tensor:
    """A layer's output as `(n, n_tokens, d_in)`: feature maps become one token per place, a vector becomes one token.

    Raises:
        ValueError: If it has another number of dimensions, or not one entry per piece.
    """
    if output.ndim not in (2, 3, 4) or len(output) != n:
        raise ValueError(
            f"layer must return (n, d), (n, tokens, d) or (n, d, height, width) for n = {n} inputs, "
            f"but {layer!r} returns {tuple(output.shape)}"
        )
    if output.ndim == 4:
        return output.flatten(2).transpose(1, 2)
    return output if output.ndim == 3 else output[:, None]


def stack(pieces: Sequence[Piece]) -> dict[str, Tensor]:
    """The arguments of pieces that have one shape, one after the other."""
    names: Any = pieces[0].inputs
    return {name: torch.stack([piece.inputs[name] for piece in pieces]) for name in names}
