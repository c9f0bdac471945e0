"""Projections: from pre-codes to the nearest sparse codes in the set that an architecture allows."""

import math
from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import Tensor, nn

from sae_lightning.nn import functional
from sae_lightning.nn.parts import Part, require_finite_positive, require_positive
from sae_lightning.nn.receptive_fields import Firing
from sae_lightning.nn.rows import full_tensor, set_rows


class Projection(Part, nn.Module, ABC):
    """Base of all projections: the nearest point of a set of codes, which is what `forward` returns.

    A subclass needs `forward` alone. What else it tells must be told again by a subclass of it that changes `forward`.
    `forward` is the form for inference, in which the codes of a sample do not depend on the rest of its batch.

    Args:
        d_sae: Number of latents.

    Raises:
        ValueError: If `d_sae` is below 1.
    """

    undescribed = frozenset({"d_in", "d_sae"})
    shift_invariant: bool = False  # True where adding a constant to all pre-codes of a row changes nothing
    firing: ClassVar[Firing | None] = None
    """What decides which latents fire, and with the encoder their receptive fields; None where nobody said."""

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        require_positive("d_sae", d_sae)
        self.d_sae = d_sae

    @abstractmethod
    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes of pre-codes `(..., d_sae)`, of the same shape."""

    def forward_train(self, pre_codes: Tensor) -> Tensor:
        """Return the codes of a training batch, where these may depend on the rest of the batch; else as `forward`."""
        codes: Tensor = self(pre_codes)
        return codes

    def unbounded(self, pre_codes: Tensor) -> Tensor:
        """Codes without a bound that the set puts on how many of them are nonzero, `(..., d_sae)`."""
        codes: Tensor = self(pre_codes)
        return codes

    def at_most(self) -> int | None:
        """How many codes of a sample the set allows to be nonzero; None where it does not bound them."""
        return None

    def restart(self, latents: Tensor) -> None:
        """Set what this projection trains of some latents, int64 `(n,)`, to initial values."""

    def thresholds(self) -> Tensor | None:
        """What each latent's pre-code must exceed for it to fire, `(d_sae,)`; None where that is not a number."""
        return None

    def dynamics(self) -> dict[str, Tensor]:
        """Scalars worth watching during training, by name."""
        return {}


class Orthant(Projection):
    r"""Nonnegative orthant: $z = \max(v, 0)$, the ReLU.

    Shapes: `(..., d_sae)` to the same.
    """

    firing = "level"

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes."""
        return functional.at_least_float32(pre_codes).relu()


class Jump(Projection):
    r"""Orthant with a jump: $z_i = v_i$ where $v_i > \theta_i$, zero elsewhere, with trained $\theta = e^{\rho} > 0$.

    Args:
        d_sae: Number of latents.
        threshold_init: Initial threshold of every latent, positive.
        bandwidth: Width of the rectangle kernel of the straight-through gradient, positive.

    Shapes: `(..., d_sae)` to the same.

    Source: Rajamanoharan et al. (2024), arXiv 2407.14435.
    """

    rows_of_latents = frozenset({"log_threshold"})
    firing = "level"

    def __init__(self, d_sae: int, threshold_init: float = 1e-3, bandwidth: float = 1e-3) -> None:
        super().__init__(d_sae)
        require_finite_positive("threshold_init", threshold_init)
        require_finite_positive("bandwidth", bandwidth)
        self.threshold_init = threshold_init
        self.bandwidth = bandwidth
        self.log_threshold = nn.Parameter(torch.full((d_sae,), math.log(threshold_init)))

    @property
    def threshold(self) -> Tensor:
        """The current thresholds, `(d_sae,)`."""
        return functional.at_least_float32(full_tensor(self.log_threshold)).exp()

    def thresholds(self) -> Tensor:
        """The trained thresholds."""
        return self.threshold

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes."""
        return functional.jump(pre_codes, self.threshold, self.bandwidth)

    def restart(self, latents: Tensor) -> None:
        """Set thresholds to the initial one."""
        set_rows(self.log_threshold, latents, math.log(self.threshold_init))

    def dynamics(self) -> dict[str, Tensor]:
        """Mean and maximum of the thresholds."""
        threshold = self.threshold.detach()
        return {"threshold_mean": threshold.mean(), "threshold_max": threshold.amax()}


class KSparse(Projection):
    """Nonnegative vectors with at most `k` nonzeros: the k largest pre-codes, clipped at zero.

    Args:
        d_sae: Number of latents.
        k: Number of codes to keep per sample, from 1 to `d_sae`.

    Shapes: `(..., d_sae)` to the same.

    Raises:
        ValueError: If `k` is below 1 or above `d_sae`.

    Source: Gao et al. (2024), arXiv 2406.04093.
    """

    firing = "largest"

    def __init__(self, d_sae: int, k: int) -> None:
        super().__init__(d_sae)
        if not 1 <= k <= d_sae:
            raise ValueError(f"k must lie between 1 and d_sae = {d_sae}, but is {k}")
        self.k = k

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes."""
        return functional.k_sparse(pre_codes, self.k)

    def unbounded(self, pre_codes: Tensor) -> Tensor:
        """All positive pre-codes."""
        return pre_codes.clamp_min(0)

    def at_most(self) -> int:
        """The number k."""
        return self.k


class Simplex(Projection):
    """Probability simplex: codes are nonnegative and sum to one (sparsemax).

    How many codes are nonzero depends on the input, so that each concept can take the dimension it needs.

    Shapes: `(..., d_sae)` to the same.

    Source: Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822; Martins and Astudillo (2016), arXiv 1602.02068.
    """

    shift_invariant = True
    firing = "differences"

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes."""
        return functional.sparsemax(pre_codes)
