"""Encoders: from an input to one pre-code per latent."""

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
    """Base of all encoders: `weight` is latent-major, row i belongs to latent i.

    A subclass needs `forward` alone. What else it tells (a receptive field, an affine form, how a dead latent is
    resampled) must be told again by a subclass of it that changes `forward`.

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
    """What the rows of `weight` are in the space of the inputs."""
    nonpositive: bool = False  # True where pre-codes never exceed zero, so that only Simplex can use them

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__()
        require_positive("d_in", d_in)
        require_positive("d_sae", d_sae)
        self.d_in = d_in
        self.d_sae = d_sae
        self.weight = nn.Parameter(torch.zeros(d_sae, d_in))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Return pre-codes of inputs `(..., d_in)`, `(..., d_sae)`."""

    def restart(self, latents: Tensor, inputs: Tensor, residuals: Tensor, alive: Tensor, share: float) -> None:
        """Put each of some latents at a sample, for `ResampleDeadLatents`.

        Args:
            latents: Which latents, int64 `(n,)`.
            inputs: What the encoder sees of a sample for each latent (less the decoder's bias where that is
                subtracted), `(n, d_in)`.
            residuals: What the SAE leaves unexplained of these samples, `(n, d_in)`.
            alive: Latents that serve as examples, bool `(d_sae,)`; where there are none, initial values do.
            share: Norm of a new row as a share of the mean of those that serve as examples.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how a dead latent is resampled")

    def strengthen(self, latents: Tensor, factor: float) -> None:
        """Raise the pre-codes of some latents at the samples that they were put at, by a factor above 1."""
        raise NotImplementedError(f"{type(self).__name__} does not say how a dead latent is resampled")

    def receptive_field(self, firing: Firing) -> ReceptiveField | None:
        """Shape of the set on which a latent fires, where a projection looks at `firing`; None where nobody said."""
        return None

    def affine_form(self, up_to_a_shift: bool) -> tuple[Tensor, Tensor] | None:
        r"""Matrix $A$ `(d_sae, d_in)` and offset $a$ `(d_sae,)` with $v = A x + a$; None where there are none.

        Args:
            up_to_a_shift: Whether $v$ may differ by a number that all latents share, which the projection ignores.
        """
        return None

    def calibrate(self, x: Tensor, projection: "Projection", l0: float) -> float:
        """Scale pre-codes so that the mean L0 on standardised samples `(n, d_in)` is `l0`; return what was reached."""
        raise ValueError(f"l0_init needs the encoder SquaredDistance, but got {type(self).__name__}")

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

    rows_of_latents = frozenset({"weight", "bias"})

    def __init__(self, d_in: int, d_sae: int, bias: bool = True, pre_code_scale: float = 1.0) -> None:
        super().__init__(d_in, d_sae)
        require_finite_positive("pre_code_scale", pre_code_scale)
        self.pre_code_scale = pre_code_scale
        self.bias = nn.Parameter(torch.zeros(d_sae)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return pre-codes in float32 (or float64), `(..., d_sae)`."""
        return affine(x, None, self.weight, self.bias, self.pre_code_scale)

    def restart(self, latents: Tensor, inputs: Tensor, residuals: Tensor, alive: Tensor, share: float) -> None:
        """Point rows along the residuals, or to the samples where a residual points away from its own sample.

        A bias becomes the mean of the live ones, but not positive.
        """
        rows, towards = F.normalize(residuals, dim=-1), F.normalize(inputs, dim=-1)
        rows = torch.where((rows * towards).sum(-1, keepdim=True) < _LEAST_COSINE, towards, rows)
        norm = share * mean_of_live(self.weight.detach().norm(dim=-1), alive, 1.0)
        set_rows(self.weight, latents, (norm * rows).to(self.weight.dtype))
        if self.bias is not None:
            set_rows(self.bias, latents, float(mean_of_live(self.bias.detach(), alive, 0.0).clamp_max(0)))

    def strengthen(self, latents: Tensor, factor: float) -> None:
        """Make rows longer."""
        set_rows(self.weight, latents, factor * full_tensor(self.weight.detach())[latents])

    def affine_form(self, up_to_a_shift: bool) -> tuple[Tensor, Tensor]:
        """The scaled weight and bias."""
        bias = self.weight.new_zeros(self.d_sae) if self.bias is None else self.bias
        return self.pre_code_scale * self.weight, self.pre_code_scale * bias

    def receptive_field(self, firing: Firing) -> ReceptiveField | None:
        """Half-spaces by level; cones among the largest, unless biases move their borders; cells by differences."""
        cone = Cone() if self.bias is None else None
        return {"level": HalfSpace(), "largest": cone, "differences": ConvexCell()}[firing]


class SquaredDistance(Encoder):
    r"""Distance encoder: $v_i = b_i - \lambda \|x - w_i\|^2$ with one trained $\lambda = \mathrm{softplus}(\rho)$.

    The rows of `weight` are the prototypes $w_i$. A latent with this encoder and the simplex projection sees a
    convex polytope around its prototype. Small $\lambda$ gives uniform codes, large $\lambda$ one-hot codes.

    Without offsets $b_i$ (the default) no pre-code is positive, and only the simplex, to which a constant is nothing,
    can use them. With trained offsets the others can too: with the orthant a latent sees the ball of radius
    $\sqrt{b_i / \lambda}$ around its prototype. On the simplex they turn the cells into those of a power diagram, just
    as the biases of an affine encoder do: $b_i - \lambda \|x - w_i\|^2$ and
    $2 \lambda w_i \cdot x + (b_i - \lambda \|w_i\|^2)$ differ by the same number for all latents.

    Args:
        d_in: Size of an input.
        d_sae: Number of latents.
        lambda_init: Initial value of $\lambda$, positive.
        offset_init: Initial value of every offset $b_i$, finite; None for no offsets.

    Shapes: input `(..., d_in)`, output `(..., d_sae)`.

    Raises:
        ValueError: If `lambda_init` is not positive and finite, or `offset_init` not finite.

    Source: Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822 (without offsets).
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
        r"""The current $\lambda$, a positive scalar."""
        return F.softplus(at_least_float32(local(self.raw_lambda)))

    @property
    def wide_offset(self) -> Tensor | None:
        """The offsets in float32 (or float64), `(d_sae,)`; None without."""
        return None if self.offset is None else at_least_float32(self.offset)

    @torch.no_grad()
    def set_lambda(self, value: float) -> None:
        r"""Set $\lambda$ to `value` (the inverse of softplus, exact for tiny and huge values)."""
        require_finite_positive("lambda_init", value)
        if value > torch.finfo(torch.float32).max:
            raise ValueError(
                f"lambda must be a number of float32, but is {value:.3g}: are there inputs of very different sizes?"
            )
        raw = value + math.log(-math.expm1(-value))
        self.raw_lambda.fill_(raw)

    def forward(self, x: Tensor) -> Tensor:
        """Return pre-codes in float32 (or float64), `(..., d_sae)`; none exceeds its offset (up to rounding)."""
        return negative_squared_distance(x, self.weight, self.scale, self.wide_offset)

    def without_offset(self, pre_codes: Tensor) -> Tensor:
        r"""What is left of pre-codes `(..., d_sae)` without their offsets, $-\lambda \|x - w_i\|^2$."""
        return pre_codes if self.wide_offset is None else pre_codes - self.wide_offset

    def restart(self, latents: Tensor, inputs: Tensor, residuals: Tensor, alive: Tensor, share: float) -> None:
        """Put prototypes at the samples, with the mean offset of the live ones."""
        set_rows(self.weight, latents, inputs.to(self.weight.dtype))
        if self.offset is not None and self.offset_init is not None:
            set_rows(self.offset, latents, float(mean_of_live(self.offset.detach(), alive, self.offset_init)))

    def strengthen(self, latents: Tensor, factor: float) -> None:
        """Raise offsets. Without them a prototype at its sample has the largest pre-code there is."""
        if self.offset is not None:
            offset = full_tensor(self.offset.detach())[latents]
            scale = F.softplus(at_least_float32(full_tensor(self.raw_lambda.detach())))
            unit = scale * full_tensor(self.weight.detach())[latents].square().sum(-1).mean()
            set_rows(self.offset, latents, (offset + (factor - 1) * (offset.abs() + unit)).to(offset.dtype))

    def affine_form(self, up_to_a_shift: bool) -> tuple[Tensor, Tensor] | None:
        r"""Up to $-\lambda \|x\|^2$, which all latents share: $2 \lambda w_i \cdot x + b_i - \lambda \|w_i\|^2$."""
        if not up_to_a_shift:
            return None
        rows, scale = self.weight.double(), self.scale.double()
        offset = -scale * rows.square().sum(-1)
        return 2 * scale * rows, offset if self.wide_offset is None else offset + self.wide_offset

    def receptive_field(self, firing: Firing) -> ReceptiveField | None:
        """Balls by level, cells by differences (which are affine) and among the largest: there balls cut by others."""
        return Ball() if firing == "level" else ConvexCell()

    @torch.no_grad()
    def calibrate(self, x: Tensor, projection: "Projection", l0: float) -> float:
        """Set lambda so that the mean L0 on a batch is `l0`, by bisection.

        On the simplex lambda sets how far below its best rival's a latent's pre-code may lie. With the other
        projections, whose encoder has offsets, it sets the radius of the balls in which latents fire. The k-sparse
        projection would hide all but k of them, so that positive pre-codes are counted there, of which it takes the k
        largest.

        Args:
            x: Standardised samples, `(n, d_in)`; the first 512 are used.
            projection: The projection of the SAE.
            l0: Wanted mean number of firing latents per sample, between 1 and `d_sae`.

        Returns:
            The mean L0 that was reached. (It jumps where several latents enter the support at once.)

        Raises:
            ValueError: If `l0` lies outside 1 and `d_sae`, or offsets are so low that fewer latents fire, however small
                lambda is.
        """
        if not 1 <= l0 <= self.d_sae:
            raise ValueError(f"l0_init must lie between 1 and d_sae = {self.d_sae}, but is {l0}")
        # not from pre-codes: an offset far above the distances would leave little of them
        rows = full_tensor(self.weight)
        distances = -negative_squared_distance(x[:_CALIBRATION_SAMPLES], rows, self.scale) / self.scale
        offset = 0.0 if self.offset is None else full_tensor(self.offset)

        def mean_l0(scale: float) -> float:
            return float(fires(projection.unbounded(offset - distances * scale)).sum(-1).double().mean())

        # the useful range of lambda is around one over the spread of a sample's distances, at any scale of the data
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
        """Recover the squared distances from the pre-codes of all latents, `(..., d_sae)`."""
        return -self.without_offset(pre_codes) / self.scale

    def dynamics(self) -> dict[str, Tensor]:
        """The current lambda and, where there are offsets, their mean."""
        found = {"lambda": self.scale.detach()}
        if self.offset is not None:
            found["offset_mean"] = full_tensor(self.offset.detach()).mean()
        return found
