"""A model whose activations at a layer are replaced, to measure the effect on its loss."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sae_lightning.data.activations.layers import find_layer, replaced


class HostBatch(NamedTuple):
    """Inputs of a model and its targets."""

    inputs: tuple[Tensor, ...]
    """Arguments of the model."""
    explained: Tensor
    """Mask of the tokens whose kind of activations the SAE was trained on, bool `(n, length)`."""
    targets: Tensor
    """Next token at each position, -1 if there is none, int64 `(n, length)`."""


class SplicedHost:
    """A model, one of its layers, and batches on which its loss is measured.

    Args:
        model: Maps the inputs of a batch to logits `(n, length, n_tokens)`.
        layer: Name of a submodule, as in `named_modules`.
        batches: Inputs and targets.
        mean: Mean activation at the layer, `(d_in,)`, for mean ablation.

    Raises:
        ValueError: If the model lacks the layer.

    Example:
        >>> import torch
        >>> from sae_lightning.data.activations.hosts.spliced import HostBatch, SplicedHost
        >>> batch = HostBatch((torch.ones(1, 2, 3),), torch.tensor([[True, False]]), torch.tensor([[0, 0]]))
        >>> host = SplicedHost(torch.nn.Sequential(torch.nn.Identity()), "0", [batch], torch.zeros(3))
        >>> host.logits(batch, torch.zeros_like)  # ablates the first token only
        tensor([[0., 0., 0.],
                [1., 1., 1.]])
    """

    def __init__(self, model: nn.Module, layer: str, batches: Sequence[HostBatch], mean: Tensor) -> None:
        find_layer(model, layer)
        self.model = model
        self.layer = layer
        self.batches = batches
        self.mean = mean

    @torch.no_grad()
    def logits(self, batch: HostBatch, change: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Return the logits at positions with a target, `(n_targets, n_tokens)`.

        Args:
            batch: Inputs and targets.
            change: Maps the explained activations `(n_explained, d_in)` to their replacements; None replaces nothing.
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
