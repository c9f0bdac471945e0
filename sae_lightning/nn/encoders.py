"""Encoders: map an input to one pre-code per latent."""

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the usual name)

from sae_lightning.nn.firing import fires
from sae_lightning.nn.functional import affine, at_least_float32, negative_squared_distance
from sae_lightning.nn.parts import Part, require_finite_positive, require_positive
from sae_lightning.nn.receptive_fields import Ball, Cone, ConvexCell, Firing, HalfSpace, ReceptiveField
from sae_lightning.nn.rows import full_tensor, local, mean_of_live, set_rows

if TYPE_CHECKING:
    from sae_lightning.nn.projections import Projection

_CALIBRATION_SAMPLES = 512
_LEAST_COSINE = 0.3  # between a new row and its sample


class Encoder(Part, nn.Module, ABC):
    """Base of all encoders: row i of `weight` `(d_sae, d_in)` belongs to latent i.

    A subclass needs only `forward`. The other methods (receptive field, affine form, resampling of dead latents)
    describe that formula: a subclass that overrides the `forward` of a concrete encoder must define them again, or they
    do not apply to it (`parts.tells`).

    Args:
        d_in: Size of an input.
        d_sae: Number of latents.

    Raises:
        ValueError: If a size is below 1.
    """

    weight: nn.Parameter
    undescribed = frozenset({"d_in", "d_sae"})
    rows_of_latents = frozenset({"weight"})
    rows_are: ClassVar[Literal["directions", "prototypes"]] = "directions"
    """Meaning of the rows of `weight` in input space."""
    nonpositive: bool = False  # True if pre-codes never exceed zero, so that only Simplex can use them

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__()
        require_positive("d_in", d_in)
        require_positive("d_sae", d_sae)
        self.d_in = d_in
        self.d_sae = d_sae
        self.weight = nn.Parameter(torch.zeros(d_sae, d_in))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Map inputs `(..., d_in)` to pre-codes `(..., d_sae)`."""

    def restart(self, latents: Tensor, inputs: Tensor, residuals: Tensor, alive: Tensor, share: float) -> None:
        """Point each of the given latents at a sample, for `ResampleDeadLatents`.

        Args:
            latents: Latents to restart, int64 `(n,)`.
            inputs: Encoder input for one sample per latent (minus the decoder's bias if the SAE subtracts it),
                `(n, d_in)`.
            residuals: Reconstruction errors `x - x_hat` of these samples, `(n, d_in)`.
            alive: Latents over which norms and biases are averaged, bool `(d_sae,)`; initial values are used if there
                are none.
            share: Norm of a new row, relative to the mean norm of the rows of `alive`.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define how a dead latent is resampled")

    def strengthen(self, latents: Tensor, factor: float) -> None:
        """Raise the pre-codes of the given latents at the samples of their `restart`, by a factor above 1."""
        raise NotImplementedError(f"{type(self).__name__} does not define how a dead latent is resampled")

    def receptive_field(self, firing: Firing) -> ReceptiveField | None:
        """Return the shape of the set on which a latent fires under a projection's `firing` rule; None if unknown."""
        return None

    def affine_form(self, up_to_a_shift: bool) -> tuple[Tensor, Tensor] | None:
        r"""Return $A$ `(d_sae, d_in)` and $a$ `(d_sae,)` such that $v = A x + a$; None if pre-codes are not affine.

        Args:
            up_to_a_shift: Whether $v$ may differ by a number common to all latents, because the projection ignores it.
        """
        return None

    def calibrate(self, x: Tensor, projection: "Projection", l0: float) -> float:
        """Scale the pre-codes such that the mean L0 on a batch is `l0`.

        Args:
            x: Standardized samples, `(n, d_in)`; `SquaredDistance` uses the first 512.
            projection: Projection of the SAE. All positive pre-codes count for `KSparse`, not only the k largest.
            l0: Target mean number of firing latents per sample, from 1 to `d_sae`.

        Returns:
            The mean L0 reached. (It jumps where several latents enter the support at once.)

        Raises:
            ValueError: If the encoder cannot be calibrated, `l0` is out of range, or the offsets are so low that fewer
                latents fire at any scale.
        """
        raise ValueError(f"l0_init needs the encoder SquaredDistance, but got {type(self).__name__}")

    def dynamics(self) -> dict[str, Tensor]:
        """Return scalars to log during training, by name."""
        return {}


class Affine(Encoder):
    r"""Affine encoder: $v = s (W x + b)$.

    A latent fires on a half-space, so it can only find a concept that is linearly separable. (With `KSparse` and
    without bias it fires on a cone, so the concept must be separable by angle.)

    Args:
        d_in: Size of an input.
        d_sae: Number of latents.
        bias: Whether each latent has a trained bias.
        pre_code_scale: Fixed factor $s$ of the pre-codes; 1 works best, the authors used `1 / (2 * d_in)`.

    Shape:
        Inputs `(..., d_in)`, pre-codes `(..., d_sae)`.

    Raises:
        ValueError: If a size is below 1, or `pre_code_scale` is not positive and finite.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Affine
        >>> encoder = Affine(2, 3, bias=False)
        >>> _ = torch.nn.init.eye_(encoder.weight)
        >>> encoder(torch.tensor([5.0, 7.0])).tolist()
        [5.0, 7.0, 0.0]
    """

    rows_of_latents = frozenset({"weight", "bias"})

    def __init__(self, d_in: int, d_sae: int, bias: bool = True, pre_code_scale: float = 1.0) -> None:
        super().__init__(d_in, d_sae)
        require_finite_positive("pre_code_scale", pre_code_scale)
        self.pre_code_scale = pre_code_scale
        self.bias = nn.Parameter(torch.zeros(d_sae)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs `(..., d_in)` to pre-codes `(..., d_sae)`, in float32 or float64."""
        return affine(x, None, self.weight, self.bias, self.pre_code_scale)

    def restart(self, latents: Tensor, inputs: Tensor, residuals: Tensor, alive: Tensor, share: float) -> None:
        """Set rows to the direction of the residual, or of the input if the two differ too much in direction.

        Set biases to the mean bias of `alive`, but at most 0.
        """
        rows, directions = F.normalize(residuals, dim=-1), F.normalize(inputs, dim=-1)
        rows = torch.where((rows * directions).sum(-1, keepdim=True) < _LEAST_COSINE, directions, rows)
        norm = share * mean_of_live(self.weight.detach().norm(dim=-1), alive, 1.0)
        set_rows(self.weight, latents, (norm * rows).to(self.weight.dtype))
        if self.bias is not None:
            set_rows(self.bias, latents, float(mean_of_live(self.bias.detach(), alive, 0.0).clamp_max(0)))

    def strengthen(self, latents: Tensor, factor: float) -> None:
        """Multiply the rows by `factor`."""
        set_rows(self.weight, latents, factor * full_tensor(self.weight.detach())[latents])

    def affine_form(self, up_to_a_shift: bool) -> tuple[Tensor, Tensor]:
        """Return the scaled weight and bias."""
        bias = self.weight.new_zeros(self.d_sae) if self.bias is None else self.bias
        return self.pre_code_scale * self.weight, self.pre_code_scale * bias

    def receptive_field(self, firing: Firing) -> ReceptiveField | None:
        """Return half-spaces for "level", cones for "largest" (None with biases) and convex cells for "differences"."""
        cone = Cone() if self.bias is None else None
        return {"level": HalfSpace(), "largest": cone, "differences": ConvexCell()}[firing]


class SquaredDistance(Encoder):
    r"""Distance encoder: $v_i = b_i - \lambda \|x - w_i\|^2$ with one trained $\lambda = \mathrm{softplus}(\rho)$.

    The rows of `weight` are the prototypes $w_i$. With `Simplex`, a latent fires on a convex polytope around its
    prototype; small $\lambda$ gives uniform codes, large $\lambda$ one-hot codes.

    Without offsets $b_i$ (the default) pre-codes are never positive, so only `Simplex`, which ignores a common shift,
    can use them. With trained offsets and `Orthant`, a latent fires in the ball of radius $\sqrt{b_i / \lambda}$ around
    its prototype. With `Simplex`, offsets give the cells of a power diagram, as the biases of an affine encoder do.

    Args:
        d_in: Size of an input.
        d_sae: Number of latents.
        lambda_init: Initial value of $\lambda$, positive.
        offset_init: Initial value of every offset $b_i$, finite; None for no offsets.

    Raises:
        ValueError: If `lambda_init` is not positive and finite, or `offset_init` is not finite.

    References:
        Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822 (without offsets).

    Example:
        >>> import torch
        >>> from sae_lightning.nn import SquaredDistance
        >>> SquaredDistance(2, 1, lambda_init=0.5)(torch.tensor([3.0, 4.0]))[0].item()  # the prototype is zero
        -12.5
    """

    rows_of_latents = frozenset({"weight", "offset"})
    rows_are = "prototypes"

    def __init__(self, d_in: int, d_sae: int, lambda_init: float = 1.0, offset_init: float | None = None) -> None:
        super().__init__(d_in, d_sae)
        if offset_init is not None and not math.isfinite(offset_init):
            raise ValueError(f"offset_init must be finite or None, but is {offset_init}")
        self.raw_lambda = nn.Parameter(torch.zeros(()))
        self.set_lambda(lambda_init)
        self.offset_init = offset_init
        self.offset = None if offset_init is None else nn.Parameter(torch.full((d_sae,), float(offset_init)))
        self.nonpositive = offset_init is None

    @property
    def scale(self) -> Tensor:
        r"""Current $\lambda$, a positive scalar."""
        return F.softplus(at_least_float32(local(self.raw_lambda)))

    @property
    def wide_offset(self) -> Tensor | None:
        """Offsets in at least float32, `(d_sae,)`, or None."""
        return None if self.offset is None else at_least_float32(self.offset)

    @torch.no_grad()
    def set_lambda(self, value: float) -> None:
        r"""Set $\lambda$ to `value`, by an inverse of softplus that is exact for tiny and huge values."""
        require_finite_positive("lambda_init", value)
        if value > torch.finfo(torch.float32).max:
            raise ValueError(
                f"lambda must fit in float32, but is {value:.3g}: do inputs differ by many orders of magnitude?"
            )
        raw = value + math.log(-math.expm1(-value))
        self.raw_lambda.fill_(raw)

    def forward(self, x: Tensor) -> Tensor:
        """Map inputs `(..., d_in)` to pre-codes `(..., d_sae)`, in float32 or float64."""
        return negative_squared_distance(x, self.weight, self.scale, self.wide_offset)

    def without_offset(self, pre_codes: Tensor) -> Tensor:
        r"""Subtract the offsets from pre-codes `(..., d_sae)`, which leaves $-\lambda \|x - w_i\|^2$."""
        return pre_codes if self.wide_offset is None else pre_codes - self.wide_offset

    def restart(self, latents: Tensor, inputs: Tensor, residuals: Tensor, alive: Tensor, share: float) -> None:
        """Set prototypes to the inputs, and offsets to the mean offset of `alive`."""
        set_rows(self.weight, latents, inputs.to(self.weight.dtype))
        if self.offset is not None and self.offset_init is not None:
            set_rows(self.offset, latents, float(mean_of_live(self.offset.detach(), alive, self.offset_init)))

    def strengthen(self, latents: Tensor, factor: float) -> None:
        """Raise offsets; without offsets, a prototype at its sample already has the largest possible pre-code."""
        if self.offset is not None:
            offset = full_tensor(self.offset.detach())[latents]
            scale = F.softplus(at_least_float32(full_tensor(self.raw_lambda.detach())))
            unit = scale * full_tensor(self.weight.detach())[latents].square().sum(-1).mean()
            set_rows(self.offset, latents, (offset + (factor - 1) * (offset.abs() + unit)).to(offset.dtype))

    def affine_form(self, up_to_a_shift: bool) -> tuple[Tensor, Tensor] | None:
        r"""Return $2 \lambda w_i$ and $b_i - \lambda \|w_i\|^2$, without the common $-\lambda \|x\|^2$."""
        if not up_to_a_shift:
            return None
        rows, scale = self.weight.double(), self.scale.double()
        offset = -scale * rows.square().sum(-1)
        return 2 * scale * rows, offset if self.wide_offset is None else offset + self.wide_offset

    def receptive_field(self, firing: Firing) -> ReceptiveField | None:
        """Return balls for "level", convex cells for "differences" and for "largest" (balls cut by half-spaces)."""
        return Ball() if firing == "level" else ConvexCell()

    @torch.no_grad()
    def calibrate(self, x: Tensor, projection: "Projection", l0: float) -> float:
        """Set lambda by bisection such that the mean L0 on a batch is `l0` (see `Encoder.calibrate`)."""
        if not 1 <= l0 <= self.d_sae:
            raise ValueError(f"l0_init must lie between 1 and d_sae = {self.d_sae}, but is {l0}")
        # not from pre-codes: a large offset would round the distances away
        rows = full_tensor(self.weight)
        distances = -negative_squared_distance(x[:_CALIBRATION_SAMPLES], rows, self.scale) / self.scale
        offset = 0.0 if self.offset is None else full_tensor(self.offset)

        def mean_l0(scale: float) -> float:
            return float(fires(projection.unbounded(offset - distances * scale)).sum(-1).double().mean())

        # useful values of lambda are around one over the standard deviation of a sample's distances
        unit = 1.0 / max(distances.std(-1, correction=0).mean().item(), 1e-30)
        low, high = math.log(unit) - 20.0, math.log(unit) + 20.0
        if self.offset is not None and mean_l0(0.0) < l0:
            got = f"offset_init = {self.offset_init} with {type(projection).__name__}"
            raise ValueError(f"l0_init = {l0} needs offsets high enough for so many latents to fire, but got {got}")
        for _ in range(50):
            middle = (low + high) / 2
            if mean_l0(math.exp(middle)) > l0:
                low = middle
            else:
                high = middle
        self.set_lambda(math.exp(high))
        return mean_l0(math.exp(high))

    def distances(self, pre_codes: Tensor) -> Tensor:
        """Return the squared distances that belong to pre-codes of all latents, `(..., d_sae)`."""
        return -self.without_offset(pre_codes) / self.scale

    def dynamics(self) -> dict[str, Tensor]:
        """Return the current lambda and, if there are offsets, their mean."""
        found = {"lambda": self.scale.detach()}
        if self.offset is not None:
            found["offset_mean"] = full_tensor(self.offset.detach()).mean()
        return found
