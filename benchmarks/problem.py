"""The shapes and activations that every contender is given."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

N_BATCHES = 2  # resident batches, taken in turn
_FEATURES_PER_SAMPLE = 16


class Shape(NamedTuple):
    """Size of a training step."""

    d_in: int
    d_sae: int
    batch: int
    k: int

    def __str__(self) -> str:
        return f"({self.d_in}, {self.d_sae}, {self.batch}, {self.k})"


@dataclass(frozen=True)
class Problem:
    """What a contender is built from.

    Args:
        shape: Size of a training step.
        samples: Activations for initial values, `(n, d_in)`.
        batches: Training batches, resident on the device, each `(batch, d_in)`.
        autocast: Type of the matrix products; None leaves everything in float32.
    """

    shape: Shape
    samples: Tensor
    batches: list[Tensor]
    autocast: torch.dtype | None = None

    @property
    def device(self) -> torch.device:
        """Where everything lies."""
        return self.samples.device


def draw_activations(n: int, d_in: int, generator: torch.Generator) -> Tensor:
    """Sparse combinations of random directions with noise, centered and of mean squared norm `d_in`: `(n, d_in)`."""
    directions = torch.nn.functional.normalize(torch.randn(8 * d_in, d_in, generator=generator), dim=-1)
    chosen = torch.randint(len(directions), (n, _FEATURES_PER_SAMPLE), generator=generator)
    strengths = torch.empty(chosen.shape).exponential_(generator=generator)
    x = torch.nn.functional.embedding_bag(chosen, directions, mode="sum", per_sample_weights=strengths)
    x += 0.1 * torch.randn(x.shape, generator=generator)
    x -= x.mean(0)  # some libraries subtract the mean and others leave it to the user: without it, all see the same
    return x.div_(x.square().mean().sqrt())


def make_problem(shape: Shape, device: torch.device, autocast: torch.dtype | None = None) -> Problem:
    """The same problem for every contender.

    There are four times as many samples as latents: SpaDE calibrates its sparsity on some of them, and few of these
    should be the very points where prototypes start.
    """
    n_samples = max(8192, 4 * shape.d_sae)
    x = draw_activations(n_samples + N_BATCHES * shape.batch, shape.d_in, torch.Generator().manual_seed(0)).to(device)
    return Problem(shape, x[:n_samples], list(x[n_samples:].split(shape.batch)), autocast)
