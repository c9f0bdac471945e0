"""Interface between one SAE and the modules that train it."""

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from sae_lightning.backends import BackendName, Dense
from sae_lightning.modules.run import RunModule
from sae_lightning.nn import Regularizer, SAEOutput, SparseAutoencoder, fires


class Learned(NamedTuple):
    """The result of one SAE's training step, up to its loss."""

    x: Tensor
    """Standardized inputs, `(batch, d_in)`."""
    out: Any
    """Standardized reconstructions, codes and pre-codes, in the form that the backend works on."""
    terms: dict[str, Tensor]
    """Scalars by name: `loss`, `mse` and the other terms of the loss."""
    backend: Dense
    """The backend that ran the step."""

    def l0(self) -> Tensor:
        """Mean number of latents that fire per sample."""
        return self.backend.count_firing(self.out).double().div(len(self.x)).float()


class Evaluation(NamedTuple):
    """The result of one SAE for one batch of validation or test."""

    x: Tensor
    """Standardized inputs, `(batch, d_in)`."""
    out: SAEOutput
    """Standardized reconstructions, codes and pre-codes."""
    terms: dict[str, Tensor]
    """Scalars by name: `loss`, `mse` and the other terms of the loss."""
    target: Tensor
    """Standardized targets, `(batch, d_out)`; the inputs themselves unless the SAE has targets."""

    def l0(self) -> Tensor:
        """Mean number of latents that fire per sample."""
        return fires(self.out.codes).sum(-1).double().mean()


class StepScalars(NamedTuple):
    """What is logged of one SAE's training step."""

    terms: dict[str, Tensor]
    """Scalars by name: `loss`, `mse` and the other terms of the loss."""
    l0: Tensor | None
    """Mean number of latents that fire per sample; None if not requested."""


class Member(RunModule, ABC):
    """Interface of one SAE for the module that trains it (`SAEModule.saes`); `BaseSAE` implements it."""

    sae: SparseAutoencoder
    regularizer: Regularizer | None
    d_in: int
    d_sae: int
    gamma: float
    backend: BackendName
    chunk_size: int | None
    n_init_samples: int
    initialized: Tensor
    schedules: nn.ModuleDict

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: `(d_in,)`, or `(input_layers, d_in)`."""

    @property
    def input_layers(self) -> int | None:
        """Number of layers of an input; None for inputs without layers."""
        return self.input_shape[0] if len(self.input_shape) == 2 else None

    @property
    @abstractmethod
    def target_shape(self) -> tuple[int, ...] | None:
        """Shape of one target; None where the SAE reconstructs its input."""

    @abstractmethod
    def initialize(self, x: Tensor, target: Tensor | None = None) -> None:
        """Fit standardization and initial values to raw training samples."""

    @abstractmethod
    def begin_training(self, n_steps: float, resumed: bool = False) -> None:
        """Begin schedules for a training of `n_steps` optimizer steps (inf if unbounded), or continue them."""

    @abstractmethod
    def advance(self, step: int) -> None:
        """Set scheduled coefficients to their values after `step` optimizer steps."""

    @abstractmethod
    def learn(self, x: Tensor, target: Tensor | None = None) -> Learned:
        """Evaluate a training batch of raw inputs, and count which latents stayed silent in it."""

    @abstractmethod
    def evaluate(self, x: Tensor, target: Tensor | None = None) -> Evaluation:
        """Evaluate a batch of raw inputs; changes nothing."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of raw inputs."""

    @abstractmethod
    def running(self, device: str) -> Dense:
        """Return the backend that runs this SAE on a type of device."""

    @abstractmethod
    def run_by(self, backend: Dense, device: str) -> None:
        """Run this SAE by a backend that was made for it, on a type of device."""
