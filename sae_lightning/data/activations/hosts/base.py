"""Base class of host models, whose activations are read."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple

import torch
from torch import Tensor, nn

from sae_lightning.data.activations.layers import activations_of, find_layer
from sae_lightning.data.sources.base import Example_co
from sae_lightning.nn.parts import Recorded


class Piece(NamedTuple):
    """One input of a model: an example, or a part of one that is too long."""

    example: int
    """Index of its example in the sequence passed to `pieces`."""
    inputs: dict[str, Tensor]
    """Arguments of the model, without the batch dimension."""
    length: int
    """Number of tokens that the model processes."""
    rows: "Rows | None"
    """The tokens to read; None if they depend on the layer's output."""


class Rows(NamedTuple):
    """The `n` tokens of a piece whose activations are read."""

    places: Tensor
    """Indices of the tokens in the piece, int64 `(n,)`; or `(n, n_averaged)` to average the activations of each row."""
    concepts: Tensor
    """Concept of each token, -1 for none, int64 `(n,)`."""
    starts: Tensor
    """First character of each token, or index of the patch; -1 for the whole example, int32 `(n,)`."""
    ends: Tensor
    """One past the last character, or number of patches; -1 for the whole example, int32 `(n,)`."""


class Read(NamedTuple):
    """Activations with the concept and the origin of each."""

    activations: dict[str, Tensor]
    """Activations by layer, `(n, d_in)`."""
    concepts: Tensor
    """Concept of each, -1 for none, int64 `(n,)`."""
    examples: Tensor
    """Index of the example, int64 `(n,)`."""
    starts: Tensor
    """As in `Rows`, int32 `(n,)`."""
    ends: Tensor
    """As in `Rows`, int32 `(n,)`."""


class Host(Recorded, ABC, Generic[Example_co]):
    """Base of models whose activations are read.

    Subclasses convert examples to model inputs (`pieces`, `collate`) and select the tokens to read.

    Args:
        model: The model; it is switched to evaluation mode without gradients.

    Attributes:
        model: The model.
        unaligned: Number of labeled words so far for which no token was found.
        batch_size: Default number of tokens or images per forward pass.
        unit: Unit of `batch_size`: "tokens" or "images".
        crop: Side of the central square to which images are cropped, as a fraction of their shorter side; None if they
            are not cropped.
    """

    crop: float | None = None
    unaligned = 0
    batch_size = 64
    unit = "tokens"

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval().requires_grad_(False)

    @abstractmethod
    def pieces(self, examples: Sequence[Example_co]) -> list[Piece]:
        """Convert examples to inputs of the model."""

    @abstractmethod
    def collate(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """Batch several pieces into arguments of the model by name; the empty name is its first argument."""

    def rows(self, piece: Piece, n_tokens: int) -> Rows:
        """Return the tokens to read of a piece for which a layer returns `n_tokens` tokens."""
        assert piece.rows is not None
        return piece.rows

    def check(self, layers: Sequence[str]) -> None:
        """Check that the model has these layers.

        Raises:
            ValueError: If it lacks one; the message lists the existing ones.
        """
        if not layers:
            raise ValueError("layers must name at least one layer of the model, but is empty")
        for layer in layers:
            find_layer(self.model, layer)

    def forward(self, pieces: Sequence[Piece], layers: Sequence[str]) -> dict[str, Tensor]:
        """Return the activations of all tokens of some pieces, by layer, `(n_pieces, n_tokens, d_in)`."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        inputs = {name: value.to(device, non_blocking=True) for name, value in self.collate(pieces).items()}
        first = [inputs.pop("")] if "" in inputs else []
        found = activations_of(self.model, layers, *first, **inputs)
        return {layer: as_tokens(found[layer], len(pieces), layer) for layer in layers}

    def read(self, pieces: Sequence[Piece], layers: Sequence[str], dtype: torch.dtype) -> Read:
        """Return the activations of the selected tokens of some pieces, converted to `dtype`, on the CPU.

        Raises:
            ValueError: If layers return different numbers of tokens, so that they cannot share labels.
        """
        found = self.forward(pieces, layers)
        numbers = {layer: x.shape[1] for layer, x in found.items()}
        if len(set(numbers.values())) > 1:
            raise ValueError(
                f"layers must return the same number of tokens, but return {numbers}: harvest them one by one"
            )
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
    """Reshape a layer's output to `(n, n_tokens, d_in)`.

    Each position of a feature map becomes a token; a vector becomes a single token.

    Args:
        output: `(n, d_in)`, `(n, n_tokens, d_in)` or `(n, d_in, height, width)`.
        n: Number of inputs.
        layer: Name of the layer, for errors.

    Raises:
        ValueError: If `output` has another shape.

    Example:
        >>> import torch
        >>> from sae_lightning.data.activations.hosts.base import as_tokens
        >>> as_tokens(torch.zeros(2, 8, 3, 3), 2, "conv").shape
        torch.Size([2, 9, 8])
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
    """Stack the arguments of pieces of equal shape."""
    names: Any = pieces[0].inputs
    return {name: torch.stack([piece.inputs[name] for piece in pieces]) for name in names}
