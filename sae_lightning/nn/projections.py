"""Projections: map pre-codes to the nearest point of the set of codes that an architecture allows."""

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
    """Base of all projections: `forward` maps pre-codes to the nearest point of a set of sparse codes.

    A subclass needs only `forward`. The other methods and attributes describe that formula: a subclass that overrides
    the `forward` of a concrete projection must declare them again, or they do not apply to it (`parts.tells`).
    `forward` is the form for inference, in which the codes of a sample do not depend on the rest of its batch.

    Args:
        d_sae: Number of latents.

    Raises:
        ValueError: If `d_sae` is below 1.
    """

    undescribed = frozenset({"d_in", "d_sae"})
    shift_invariant: bool = False  # True where adding a constant to all pre-codes of a row changes nothing
    firing: ClassVar[Firing | None] = None
    """Rule by which latents fire, from which the encoder derives their receptive fields; None if unknown."""

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        require_positive("d_sae", d_sae)
        self.d_sae = d_sae

    @abstractmethod
    def forward(self, pre_codes: Tensor) -> Tensor:
        """Map pre-codes `(..., d_sae)` to codes of the same shape."""

    def forward_train(self, pre_codes: Tensor) -> Tensor:
        """Return the codes of a training batch, where these may depend on the rest of the batch; else as `forward`."""
        codes: Tensor = self(pre_codes)
        return codes

    def unbounded(self, pre_codes: Tensor) -> Tensor:
        """Return the codes without any limit on the number of nonzeros, `(..., d_sae)`."""
        codes: Tensor = self(pre_codes)
        return codes

    def at_most(self) -> int | None:
        """Return the maximum number of nonzero codes per sample, or None if there is no limit."""
        return None

    def restart(self, latents: Tensor) -> None:
        """Reset the trained parameters of the given latents, int64 `(n,)`, to their initial values."""

    def thresholds(self) -> Tensor | None:
        """Return the pre-code above which each latent fires, `(d_sae,)`, or None if it depends on the input."""
        return None

    def dynamics(self) -> dict[str, Tensor]:
        """Return scalars to log during training, by name."""
        return {}


class Orthant(Projection):
    r"""Projection onto the nonnegative orthant, the ReLU: $z = \max(v, 0)$.

    Args:
        d_sae: Number of latents.

    Shape:
        Pre-codes and codes: `(..., d_sae)`.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Orthant
        >>> Orthant(3)(torch.tensor([0.5, -1.0, 2.0]))
        tensor([0.5000, 0.0000, 2.0000])
    """

    firing = "level"

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes, `(..., d_sae)`."""
        return functional.at_least_float32(pre_codes).relu()


class Jump(Projection):
    r"""JumpReLU: $z_i = v_i$ where $v_i > \theta_i$, zero elsewhere, with trained thresholds $\theta = e^{\rho} > 0$.

    Args:
        d_sae: Number of latents.
        threshold_init: Initial threshold of every latent, positive.
        bandwidth: Width of the rectangular kernel of the straight-through gradient, positive.

    Shape:
        Pre-codes and codes: `(..., d_sae)`.

    Raises:
        ValueError: If `threshold_init` or `bandwidth` is not positive and finite.

    References:
        Rajamanoharan et al. (2024), arXiv 2407.14435.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Jump
        >>> Jump(3, threshold_init=1.0)(torch.tensor([0.5, 0.9, 2.0])).tolist()
        [0.0, 0.0, 2.0]
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
        """Current thresholds, `(d_sae,)`."""
        return functional.at_least_float32(full_tensor(self.log_threshold)).exp()

    def thresholds(self) -> Tensor:
        """Return the current thresholds, `(d_sae,)`."""
        return self.threshold

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes, `(..., d_sae)`."""
        return functional.jump(pre_codes, self.threshold, self.bandwidth)

    def restart(self, latents: Tensor) -> None:
        """Reset the thresholds of the given latents to `threshold_init`."""
        set_rows(self.log_threshold, latents, math.log(self.threshold_init))

    def dynamics(self) -> dict[str, Tensor]:
        """Return mean and maximum of the thresholds."""
        threshold = self.threshold.detach()
        return {"threshold_mean": threshold.mean(), "threshold_max": threshold.amax()}


class KSparse(Projection):
    """Projection onto nonnegative vectors with at most `k` nonzeros (TopK): keep the k largest, clip them at zero.

    Args:
        d_sae: Number of latents.
        k: Number of codes to keep per sample, from 1 to `d_sae`.

    Shape:
        Pre-codes and codes: `(..., d_sae)`.

    Raises:
        ValueError: If `k` is below 1 or above `d_sae`.

    References:
        Gao et al. (2024), arXiv 2406.04093.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import KSparse
        >>> KSparse(4, k=2)(torch.tensor([3.0, 1.0, -2.0, 2.0]))
        tensor([3., 0., 0., 2.])
    """

    firing = "largest"

    def __init__(self, d_sae: int, k: int) -> None:
        super().__init__(d_sae)
        if not 1 <= k <= d_sae:
            raise ValueError(f"k must lie between 1 and d_sae = {d_sae}, but is {k}")
        self.k = k

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes, `(..., d_sae)`."""
        return functional.k_sparse(pre_codes, self.k)

    def unbounded(self, pre_codes: Tensor) -> Tensor:
        """Return all positive pre-codes, `(..., d_sae)`."""
        return pre_codes.clamp_min(0)

    def at_most(self) -> int:
        """Return `k`."""
        return self.k


class Simplex(Projection):
    """Projection onto the probability simplex (sparsemax): codes are nonnegative and sum to one.

    The number of nonzero codes depends on the input, so a concept gets as many latents as its dimension needs.

    Args:
        d_sae: Number of latents.

    References:
        Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822; Martins and Astudillo (2016), arXiv 1602.02068.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Simplex
        >>> Simplex(3)(torch.tensor([0.5, 0.0, -2.0]))
        tensor([0.7500, 0.2500, 0.0000])
    """

    shift_invariant = True
    firing = "differences"

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes, `(..., d_sae)`."""
        return functional.sparsemax(pre_codes)
