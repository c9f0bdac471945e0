"""Read or replace the activations of a model at named layers."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class _Reached(Exception):  # noqa: N818  (control flow, not an error)
    """Stops a forward pass after the last requested layer."""


def find_layer(model: nn.Module, layer: str) -> nn.Module:
    """Return the submodule of a model with a name.

    Raises:
        ValueError: If there is none; the message lists the existing names.
    """
    layers: dict[str, nn.Module] = {name: module for name, module in model.named_modules() if name}
    if layer not in layers:
        raise ValueError(f"layer must be one of the model's {list(layers)}, but is {layer!r}")
    return layers[layer]


def _first(output: Any) -> Tensor:
    """Return the hidden states in a layer's output: the output itself, or its first element if it is a sequence."""
    found = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(found, Tensor):
        raise ValueError(f"layer must return a tensor of activations, but returns a {type(found).__name__}")
    return found


@torch.no_grad()
def activations_of(model: nn.Module, layers: Sequence[str], *inputs: Any, **named: Any) -> dict[str, Tensor]:
    """Run a model and return the outputs of some layers; computation stops after the last of them.

    Args:
        model: The model.
        layers: Names of submodules, as in `named_modules`. If one runs several times, its first output is returned.
        inputs: Positional arguments of the model.
        named: Keyword arguments of the model.

    Returns:
        The output of each layer by its name.

    Raises:
        ValueError: If a layer does not exist, returns no tensor, or is not reached.

    Example:
        >>> import torch
        >>> from sae_lightning.data.activations.layers import activations_of
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(2, 1))
        >>> activations_of(model, ["0"], torch.tensor([[-1.0, 2.0]]))
        {'0': tensor([[0., 2.]])}
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
    """Run a model up to one layer and return its output; see `activations_of`."""
    return activations_of(model, [layer], *inputs, **named)[layer]


@contextmanager
def replaced(model: nn.Module, layer: str, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Context manager in which a function replaces the output of a layer.

    Args:
        model: The model.
        layer: Name of a submodule, as in `named_modules`.
        function: Maps activations to activations of the same shape.

    Raises:
        ValueError: If the layer does not exist or returns no tensor.

    Example:
        >>> import torch
        >>> from sae_lightning.data.activations.layers import replaced
        >>> model = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Flatten())
        >>> with replaced(model, "0", lambda x: x + 10):
        ...     model(torch.tensor([[-1.0, 2.0]]))
        tensor([[10., 12.]])
    """

    def replace(module: nn.Module, _: Any, output: Any) -> Any:
        new = function(_first(output))
        return (new, *output[1:]) if isinstance(output, (tuple, list)) else new

    handle = find_layer(model, layer).register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()
