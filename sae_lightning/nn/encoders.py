"""Encoders: from an input to one pre-code per latent."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the usual name)

from sae_lightning.nn.functional import at_least_float32, encode, squared_distance
from sae_lightning.nn.parts import Recorded, require_finite_positive, require_positive


class Encoder(Recorded, nn.Module):
    """Base of all encoders: `weight` is latent-major, row i belongs to latent i.

    Args:
        d_in: Size of an input.
        d_sae: Number of latents.

    Raises:
        ValueError: If a size is below 1.
    """

    weight: nn.Parameter
    undescribed = frozenset({"d_in", "d_sae"})
    nonpositive: bool = False  # True where pre-codes never exceed zero, so that only Simplex can use them

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__()
        require_positive("d_in", d_in)
        require_positive("d_sae", d_sae)
        self.d_in = d_in
        self.d_sae = d_sae
        self.weight = nn.Parameter(torch.zeros(d_sae, d_in))

    def dynamics(self) -> dict[str, Tensor]:
        """Scalars worth watching during training, by name."""
        return {}


class Affine(Encoder):
    r"""Affine encoder: $v = s (W x + b)$.

    A latent with this encoder sees a half-space, so its concept must be linearly separable (with k-sparse codes
    and no bias: a cone, so it must be separable by angle).

    Args:
        d_in: Size of an input.
        d_sae: Number of latents.
        bias: Whether latents have a bias of their own.
        pre_code_scale: Frozen factor $s$ of the pre-codes; 1 works best, the authors used `1 / (2 * d_in)`.

    Shapes: input `(..., d_in)`, output `(..., d_sae)`.
    """

    def __init__(self, d_in: int, d_sae: int, bias: bool = True, pre_code_scale: float = 1.0) -> None:
        super().__init__(d_in, d_sae)
        require_finite_positive("pre_code_scale", pre_code_scale)
        self.pre_code_scale = pre_code_scale
        self.bias = nn.Parameter(torch.zeros(d_sae)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return pre-codes in float32 (or float64), `(..., d_sae)`."""
        pre_codes = at_least_float32(encode(x.to(self.weight.dtype), self.weight))
        if self.bias is not None:
            pre_codes = pre_codes + self.bias
        return pre_codes if self.pre_code_scale == 1.0 else pre_codes * self.pre_code_scale


class SquaredDistance(Encoder):
    r"""Distance encoder: $v_i = -\lambda \|x - w_i\|^2$ with one trained $\lambda = \mathrm{softplus}(\rho)$.

    The rows of `weight` are the prototypes $w_i$. A latent with this encoder and the simplex projection sees a
    convex polytope around its prototype. Small $\lambda$ gives uniform codes, large $\lambda$ one-hot codes.

    Args:
        d_in: Size of an input.
        d_sae: Number of latents.
        lambda_init: Initial value of $\lambda$, positive.

    Shapes: input `(..., d_in)`, output `(..., d_sae)`.

    Source: Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822.
    """

    nonpositive = True

    def __init__(self, d_in: int, d_sae: int, lambda_init: float = 1.0) -> None:
        super().__init__(d_in, d_sae)
        self.raw_lambda = nn.Parameter(torch.zeros(()))
        self.set_lambda(lambda_init)

    @property
    def scale(self) -> Tensor:
        r"""The current $\lambda$, a positive scalar."""
        return F.softplus(at_least_float32(self.raw_lambda))

    @torch.no_grad()
    def set_lambda(self, value: float) -> None:
        r"""Set $\lambda$ to `value` (the inverse of softplus, exact for tiny and huge values)."""
        require_finite_positive("lambda_init", value)
        raw = value + math.log(-math.expm1(-value))
        self.raw_lambda.fill_(raw)

    def forward(self, x: Tensor) -> Tensor:
        """Return pre-codes in float32 (or float64), `(..., d_sae)`; none exceeds zero (up to rounding)."""
        return squared_distance(x.to(self.weight.dtype), self.weight) * -self.scale

    def distances(self, pre_codes: Tensor) -> Tensor:
        """Recover the squared distances from pre-codes (or from sums of them, weighted by the codes)."""
        return -pre_codes / self.scale

    def dynamics(self) -> dict[str, Tensor]:
        """The current lambda."""
        return {"lambda": self.scale.detach()}
