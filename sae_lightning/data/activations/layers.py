"""Activations within a model, by the name of a layer: read on their way, or replaced."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Reached(Exception):  # noqa: N818  (no error, but the way out of a forward pass)
    """Ends a forward pass when its layer has been computed."""


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """The submodule of a model that has a name.

    Raises:
        ValueError: If there is none; the message lists the names that there are.
    """
    layers: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    if layer not in layers:
        raise ValueError(f"layer must be one of the model's {list(layers)}, but is {layer!r}")
    return layers[layer]


def _first(output: Any) -> Tensor:
    """The hidden states in a layer's output: itself, or the first of several."""
    found = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(found, Tensor):
        raise ValueError(f"layer must return a tensor of activations, but returns a {type(found).__name__}")
    return found


@torch.no_grad()
def activations_of(model: nn.Module, layers: Sequence[str], *inputs: Any, **named: Any) -> dict[str, Tensor]:
    """Run a model up to the last of some layers and return what each returns; what comes after it is not computed.

    Args:
        model: The model.
        layers: Names of submodules, as in `named_modules`; of one that runs several times, the first run counts.
        inputs: Passed on to the model.
        named: Passed on to the model.

    Raises:
        ValueError: If there is no such layer, it returns no tensor, or it is not reached.
    """
    found: dict[str, Tensor] = {}

    def reader(layer: str) -> Callable[[nn.Module, Any, Any], None]:
        def read(module: nn.Module, _: Any, output: Any) -> None:
            if layer not in found:
                found[layer] = _first(output)
            if len(found) == len(set(layers)):
                raise _Reached

        return read

    modules = {layer: find_layer(model, layer) for layer in layers}
    handles = [module.register_forward_hook(reader(layer)) for layer, module in modules.items()]
    try:
        model(*inputs, **named)
    except _Reached:
        pass
    finally:
        for handle in handles:
            handle.remove()
    for layer in layers:
        if layer not in found:
            raise ValueError(f"layer must take part in the forward pass, but {layer!r} does not")
    return found


def activations_at(model: nn.Module, layer: str, *inputs: Any, **named: Any) -> Tensor:
    """Run a model up to one layer and return what that returns: `activations_of` for a single layer."""
    return activations_of(model, [layer], *inputs, **named)[layer]


@contextmanager
def replaced(model: nn.Module, layer: str, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let a function change what a layer returns, as long as the block lasts.

    Args:
        model: The model.
        layer: Name of a submodule, as in `named_modules`.
        function: From activations to others of the same shape.

    Raises:
        ValueError: If there is no such layer, or it returns no tensor.
    """

    def replace(module: nn.Module, _: Any, output: Any) -> Any:
        new = function(_first(output))
        return (new, *output[1:]) if isinstance(output, (tuple, list)) else new

    handle = find_layer(model, layer).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
