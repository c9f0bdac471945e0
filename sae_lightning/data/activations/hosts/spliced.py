"""A model whose activations at a layer are replaced by others, and what it then loses."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae_lightning.data.activations.layers import find_layer, replaced


class HostBatch(NamedTuple):
    """What a model reads, and what it should predict."""

    inputs: tuple[Tensor, ...]
    """Arguments of the model."""
    explained: Tensor
    """Where activations are of the kind that the SAE was trained on, bool `(n, length)`."""
    targets: Tensor
    """What comes next, -1 where nothing does, int64 `(n, length)`."""


class SplicedHost:
    """A model, one of its layers, and batches on which its loss is measured.

    Args:
        model: Maps the inputs of a batch to logits `(n, length, n_tokens)`.
        layer: Name of a submodule, as in `named_modules`.
        batches: What it reads.
        mean: Mean activation at the layer, `(d_in,)`, for mean ablation.

    Raises:
        ValueError: If there is no such layer.
    """

    def __init__(self, model: nn.Module, layer: str, batches: Sequence[HostBatch], mean: Tensor) -> None:
        find_layer(model, layer)
        self.model = model
        self.layer = layer
        self.batches = batches
        self.mean = mean

    @torch.no_grad()
    def logits(self, batch: HostBatch, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Logits where something is to be predicted, `(n_targets, n_tokens)`.

        Args:
            batch: What the model reads.
            change: From the explained activations `(n_explained, d_in)` to what takes their place; None: no change.
        """
        if change is None:
            logits: Tensor = self.model(*batch.inputs)
            return logits[batch.targets >= 0]
        function = change

        def splice(activations: Tensor) -> Tensor:
            changed = activations.clone()
            changed[batch.explained] = function(activations[batch.explained]).to(activations.dtype)
            return changed

        with replaced(self.model, self.layer, splice):
            return self.logits(batch)
