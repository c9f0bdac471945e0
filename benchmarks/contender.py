"""A contender: one library's training step of one architecture."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from benchmarks.problem import Problem, Shape

LEARNING_RATE = 1e-7  # so small that sparsity stays what it is while steps are timed
DENSITY = 0.01  # share of latents of a ReLU or JumpReLU SAE that fire
NEVER = 10**12  # batches or samples after which a silent latent counts as dead, where none shall


class Contender(ABC):
    """A training step that is ready to run; subclasses build it from a `Problem`.

    Attributes:
        optimizer: What steps the parameters.
    """

    optimizer: torch.optim.Optimizer

    @abstractmethod
    def step(self, x: Tensor) -> None:
        """Run one training step on a batch: forward, backward, whatever the library does to gradients, optimizer."""

    @abstractmethod
    def codes(self, x: Tensor) -> Tensor:
        """Dense codes of a batch, `(batch, d_sae)`."""

    @abstractmethod
    def raise_threshold(self, level: float) -> None:
        """Let only pre-codes above `level` fire; nothing to do for TopK and SpaDE, which choose their own sparsity."""

    @torch.no_grad()
    def calibrate(self, x: Tensor) -> None:
        """Bring ReLU and JumpReLU, which start dense, to the sparsity of trained ones."""
        values = self.codes(x[:64]).flatten()
        self.raise_threshold(values.kthvalue(max(1, round(len(values) * (1 - DENSITY)))).values.item())

    @torch.no_grad()
    def sparsity(self, batches: list[Tensor]) -> tuple[float, float]:
        """Mean number of latents that fire in a sample, and the share of latents that fire in none."""
        firing = [self.codes(x) > 0 for x in batches]
        l0 = sum(float(f.sum(-1).double().mean()) for f in firing) / len(firing)
        fired = torch.stack([f.any(0) for f in firing]).any(0)
        return l0, 1 - float(fired.double().mean())


def autocast(problem: Problem) -> contextlib.AbstractContextManager[object]:
    """The autocast region that the problem asks for."""
    if problem.autocast is None:
        return contextlib.nullcontext()
    return torch.autocast(problem.device.type, dtype=problem.autocast)


def use_tiny_learning_rate(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter group the learning rate of the benchmark."""
    for group in optimizer.param_groups:
        group["lr"] = LEARNING_RATE


@torch.no_grad()
def silence_some(rows: Tensor) -> None:
    """Let a tenth of TopK's latents fall silent: pre-codes a tenth as large are never among the k largest.

    Args:
        rows: Encoder weights, `(d_sae, d_in)`, changed in place.
    """
    rows[: len(rows) // 10] *= 0.1


def dense_bytes(shape: Shape) -> int:
    """About what a step with dense codes needs: weights, gradients, moments and samples, and ten arrays of codes."""
    return 4 * (10 * shape.d_sae * shape.d_in + 10 * shape.batch * shape.d_sae)


@dataclass(frozen=True)
class Entry:
    """A contender's name and how to build it.

    Args:
        library: Whose training step it is, with its variant.
        architecture: Which SAE.
        build: Makes the contender.
        module: The package that must be installed.
        bytes_needed: About how much memory a step of some shape takes.
        in_sweep: Whether it takes part in the sweep over widths.
    """

    library: str
    architecture: str
    build: Callable[[Problem], Contender]
    module: str = "sae_lightning"
    bytes_needed: Callable[[Shape], int] = dense_bytes
    in_sweep: bool = True

    @property
    def name(self) -> str:
        """Library and architecture."""
        return f"{self.library}/{self.architecture}"

    @property
    def installed(self) -> bool:
        """Whether its package can be imported."""
        return find_spec(self.module) is not None
