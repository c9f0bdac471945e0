"""Schedules of coefficients, as part of the checkpoint."""

import math
from numbers import Integral, Real

import torch
from torch import Tensor, nn

_MOST_STEPS = 2**62  # of an int64


def warmup_length(name: str, length: int | float) -> int | float:
    """Return the length of a warm-up as a Python number: a number of steps, or a share of training.

    Raises:
        ValueError: If `length` is neither an integer from 0 to 2**62 nor a share between 0 and 1.
    """
    if isinstance(length, Integral) and not isinstance(length, bool) and 0 <= length <= _MOST_STEPS:
        return int(length)
    if isinstance(length, Real) and not isinstance(length, Integral) and 0 <= length <= 1:
        return float(length)
    raise ValueError(
        f"{name} must be a number of steps (an integer) or a share of training between 0 and 1, but is {length!r}"
    )


class Warmup(nn.Module):
    r"""Linear warm-up of a coefficient from 0: its factor after t steps is $\min(1, t / n)$.

    Length and step are buffers: a resumed run continues the same warm-up, even if it is longer or shorter. Before
    training begins, the factor is 1.

    Args:
        length: Number n of optimizer steps (an integer, at least 1), or a share of training (at most 1).

    Raises:
        ValueError: If `length` is out of range.

    Example:
        >>> warmup = Warmup(0.5)
        >>> warmup.begin(n_steps=8)
        >>> warmup.advance(step=1)
        >>> warmup.factor()
        tensor(0.2500)
    """

    n_steps: Tensor
    step: Tensor

    def __init__(self, length: int | float) -> None:
        super().__init__()
        self.length = warmup_length("length", length)
        self.register_buffer("n_steps", torch.tensor(0))
        self.register_buffer("step", torch.tensor(0))

    def begin(self, n_steps: float, resumed: bool = False) -> None:
        """Fix the length for a training of `n_steps` optimizer steps.

        Args:
            n_steps: Optimizer steps of the training; inf if it has no end.
            resumed: Whether training continues that of a checkpoint, whose length stays.

        Raises:
            ValueError: If a share is wanted of a training without an end.
        """
        if resumed and int(self.n_steps):
            return
        if isinstance(self.length, int):
            self.n_steps.fill_(self.length)
        elif math.isinf(n_steps):
            raise ValueError(
                f"a warm-up over a share of training, {self.length}, needs trainer.max_steps or max_epochs; without "
                "them give a number of steps"
            )
        else:
            self.n_steps.fill_(max(1, round(self.length * n_steps)))

    def advance(self, step: int) -> None:
        """Set the number of optimizer steps taken."""
        self.step.fill_(step)

    def factor(self) -> Tensor:
        """Return the factor at the current step, a scalar between 0 and 1."""
        factor = (self.step.float() / self.n_steps.clamp_min(1)).clamp_max(1)
        return torch.where(self.n_steps > 0, factor, 1.0)
