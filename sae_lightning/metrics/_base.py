"""What the metric classes share beyond torchmetrics."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class _Sealed:
    """Hides a result from torchmetrics, which would squeeze its tensors of one element."""

    def __init__(self, result: Any) -> None:
        self.result = result


class SAEMetric(Metric):
    """Base of all metrics here: exact additive states that keep their dtype, and results that keep their shape.

    * States hold counts in int64 and sums in float64. ``module.to(torch.bfloat16)``, which Lightning's "true"
      half-precision plugins call, would round them: here ``to``, ``half`` and the like move states, and never
      convert them.
    * torchmetrics squeezes every result tensor of one element, so that `per_concept` of a single concept would lose
      its dimension: here a result is what the functional twin returns.
    """

    full_state_update = False
    is_differentiable = False

    def _add(self, batch: tuple[Tensor, ...], *names: str) -> None:
        """Add a batch's sums to the states of these names."""
        for name, value in zip(names, batch, strict=True):
            setattr(self, name, getattr(self, name) + value)

    def _add_counter(self, name: str, *shape: int) -> None:
        """Declare an int64 state of zeros."""
        self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def _add_sum(self, name: str, *shape: int) -> None:
        """Declare a float64 state of zeros."""
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
