"""Base class of the metrics."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class _Sealed:
    """Wrapper of a result, because torchmetrics squeezes the one-element tensors of results that it can traverse."""

    def __init__(self, result: Any) -> None:
        self.result = result


class SAEMetric(Metric):
    """Base class of metrics whose states keep their dtype and whose results keep their shape.

    * States are int64 counts and float64 sums. ``to``, ``half`` and similar methods change their device but not
      their dtype: Lightning's "true" half-precision plugins call ``module.to(torch.bfloat16)``, which would round them.
    * torchmetrics squeezes one-element tensors in results, which would remove the dimension of `per_concept` where
      there is a single concept. ``compute`` returns what the functional form returns.
    """

    full_state_update = False
    is_differentiable = False

    def _add(self, batch: tuple[Tensor, ...], *names: str) -> None:
        """Add the sums of a batch to the states ``names``."""
        for name, value in zip(names, batch, strict=True):
            setattr(self, name, getattr(self, name) + value)

    def _add_counter(self, name: str, *shape: int) -> None:
        """Register an int64 state of zeros."""
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def _add_sum(self, name: str, *shape: int) -> None:
        """Register a float64 state of zeros."""
        self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> torch.nn.Module:
        def move(state: Tensor) -> Tensor:
            return state.to(fn(state.new_empty(0)).device)

        return super()._apply(move, exclude_state)

    def _wrap_compute(self, compute: Callable[..., Any]) -> Callable[..., Any]:
        sealed = super()._wrap_compute(lambda: _Sealed(compute()))

        def unsealed() -> Any:
            return sealed().result

        return unsealed
