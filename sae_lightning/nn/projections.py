"""Projections: from pre-codes to the nearest sparse codes in the set that an architecture allows."""

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sae_lightning.nn import functional
from sae_lightning.nn.parts import Part, require_finite_positive, require_positive
from sae_lightning.nn.receptive_fields import Firing
from sae_lightning.nn.sharding import k_sparse_over, local, set_rows, sparsemax_over
from sae_lightning.nn.sparse import Pattern, SparseCodes
from sae_lightning.nn.support import above, largest, simplex_support


class Projection(Part, nn.Module, ABC):
    """Base of all projections: `forward` gives dense codes, `support` and `at` give the same codes sparsely.

    A subclass that has `support` and `at` says so with `sparse = True`; without them training is dense.

    Args:
        d_sae: Number of latents.

    Raises:
        ValueError: If `d_sae` is below 1.
    """

    l0: int | None = None
    """Nonzero codes per sample where the set itself bounds them; None where they must be counted."""

    undescribed = frozenset({"d_in", "d_sae"})
    shift_invariant: bool = False  # True where adding a constant to all pre-codes of a row changes nothing
    firing: ClassVar[Firing | None] = None
    """What decides which latents fire, and with the encoder their receptive fields; None where nobody said."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep `firing` from saying of a parent what a changed `forward` may do no longer."""
        super().__init_subclass__(**kwargs)
        if "forward" in cls.__dict__ and "firing" not in cls.__dict__:
            cls.firing = None

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        require_positive("d_sae", d_sae)
        self.d_sae = d_sae

    @abstractmethod
    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes of pre-codes `(..., d_sae)`, of the same shape."""

    def support(self, pre_codes: Tensor) -> Pattern:
        """Where codes, or what trains them, can differ from zero, for pre-codes `(n, d_sae)`; no gradient."""
        raise NotImplementedError(f"{type(self).__name__} has no sparse form")

    def at(self, pre_codes: Tensor, pattern: Pattern) -> Tensor:
        """Codes at the positions of `support`, from the pre-codes there; both `(nnz,)`."""
        raise NotImplementedError(f"{type(self).__name__} has no sparse form")

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

    sparse = True
    rows_of_latents = frozenset()
    resamplable = True
    firing = "level"

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes."""
        return functional.at_least_float32(pre_codes).relu()

    def support(self, pre_codes: Tensor) -> Pattern:
        """Where pre-codes are positive."""
        return above(pre_codes, 0.0)

    def at(self, pre_codes: Tensor, pattern: Pattern) -> Tensor:
        """The pre-codes themselves."""
        return pre_codes


class Jump(Projection):
    r"""Orthant with a jump: $z_i = v_i$ where $v_i > \theta_i$, zero elsewhere, with trained $\theta = e^{\rho} > 0$.

    Args:
        d_sae: Number of latents.
        threshold_init: Initial threshold of every latent, positive.
        bandwidth: Width of the rectangle kernel of the straight-through gradient, positive.

    Shapes: `(..., d_sae)` to the same.

    Source: Rajamanoharan et al. (2024), arXiv 2407.14435.
    """

    sparse = True
    rows_of_latents = frozenset({"log_threshold"})
    resamplable = True
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
        """The current thresholds, `(d_sae,)`, or those of this process's own latents."""
        return functional.at_least_float32(local(self.log_threshold)).exp()

    def thresholds(self) -> Tensor:
        """The trained thresholds."""
        return self.threshold

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes."""
        return functional.jump(pre_codes, self.threshold, self.bandwidth)

    def restart(self, latents: Tensor) -> None:
        """Set thresholds to the initial one."""
        set_rows(self.log_threshold, latents, math.log(self.threshold_init))

    def support(self, pre_codes: Tensor) -> Pattern:
        """Where pre-codes exceed their threshold, or lie so close below it that they train it."""
        threshold = self.threshold
        # a little lower, so that rounding leaves out none
        return above(pre_codes, threshold - self.bandwidth / 2 - 1e-6 * (threshold + self.bandwidth))

    def at(self, pre_codes: Tensor, pattern: Pattern) -> Tensor:
        """Codes at the pattern's positions."""
        return functional.jump(pre_codes, self.threshold.index_select(0, pattern.latents), self.bandwidth)

    def dynamics(self) -> dict[str, Tensor]:
        """Mean and maximum of the thresholds."""
        threshold = self.threshold.detach()
        if self.sharding is not None:
            threshold = self.sharding.gather(threshold)
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

    sparse = True
    rows_of_latents = frozenset()
    resamplable = True
    firing = "largest"

    def __init__(self, d_sae: int, k: int) -> None:
        super().__init__(d_sae)
        if not 1 <= k <= d_sae:
            raise ValueError(f"k must lie between 1 and d_sae = {d_sae}, but is {k}")
        self.k = self.l0 = k

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes."""
        if self.sharding is not None:
            return k_sparse_over(functional.at_least_float32(pre_codes), self.k, self.sharding)
        return functional.k_sparse(pre_codes, self.k)

    def support(self, pre_codes: Tensor) -> Pattern:
        """The k largest pre-codes of each sample, where positive."""
        return largest(pre_codes, self.k)

    def at(self, pre_codes: Tensor, pattern: Pattern) -> Tensor:
        """The pre-codes themselves."""
        return pre_codes


class Simplex(Projection):
    """Probability simplex: codes are nonnegative and sum to one (sparsemax).

    How many codes are nonzero depends on the input, so that each concept can take the dimension it needs.

    Shapes: `(..., d_sae)` to the same.

    Source: Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822; Martins and Astudillo (2016), arXiv 1602.02068.
    """

    shift_invariant = True
    sparse = True
    rows_of_latents = frozenset()
    resamplable = True
    firing = "differences"

    def forward(self, pre_codes: Tensor) -> Tensor:
        """Return the codes."""
        if self.sharding is not None:
            return sparsemax_over(functional.at_least_float32(pre_codes), self.sharding)
        return functional.sparsemax(pre_codes)

    def support(self, pre_codes: Tensor) -> Pattern:
        """Where codes are positive."""
        return simplex_support(pre_codes)

    def at(self, pre_codes: Tensor, pattern: Pattern) -> Tensor:
        """Codes on the support, where they are the pre-codes minus one threshold per sample."""
        return functional.sparsemax_on(SparseCodes(pre_codes, pattern))
