"""Encoders: from an input to one pre-code per latent."""

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812  (the usual name)

from sae_lightning.nn.functional import affine, at_least_float32, negative_squared_distance
from sae_lightning.nn.parts import Part, require_finite_positive, require_positive
from sae_lightning.nn.receptive_fields import Ball, Cone, ConvexCell, Firing, HalfSpace, ReceptiveField
from sae_lightning.nn.sharding import local, mean_of_live, set_rows, whole
from sae_lightning.nn.sparse import Pattern, affine_at, distance_at

_LEAST_COSINE = 0.3  # between a new row and its sample


class Encoder(Part, nn.Module, ABC):
    """Base of all encoders: `weight` is latent-major, row i belongs to latent i.

    A subclass whose `at` costs only what it touches says so with `sparse = True`; without it training is dense.

    Args:
        d_in: Size of an input.
        d_sae: Number of latents.

    Raises:
        ValueError: If a size is below 1.
    """

    weight: nn.Parameter
    undescribed = frozenset({"d_in", "d_sae"})
    takes_centre: bool = False  # True where the methods take the centre of the inputs as a further argument
    nonpositive: bool = False  # True where pre-codes never exceed zero, so that only Simplex can use them

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep the methods that follow `forward` from following a parent's."""
        changed = "forward" in cls.__dict__ and "sparse" not in cls.__dict__  # looked at first: the base sets `sparse`
        super().__init_subclass__(**kwargs)
        if changed:
            for name in {"at", "among", "affine_form", "takes_centre"} - cls.__dict__.keys():
                setattr(cls, name, getattr(Encoder, name))
        if "forward" in cls.__dict__ and "receptive_field" not in cls.__dict__:
            setattr(cls, "receptive_field", Encoder.receptive_field)  # noqa: B010  (mypy forbids the assignment)

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

    def at(self, x: Tensor, pattern: Pattern, values: Tensor, centre: Tensor | None = None) -> Tensor:
        """Pre-codes at some positions, `(nnz,)`, with their gradient.

        Args:
            x: Inputs, `(n, d_in)`.
            pattern: The positions.
            values: The pre-codes there, as `forward` or `among` gave them without a gradient.
            centre: What is subtracted from the inputs, for encoders that take it.
        """
        return pattern.of(self(x) if centre is None else self(x, centre))

    def among(self, x: Tensor, latents: Tensor, centre: Tensor | None = None) -> Tensor:
        """Pre-codes of some latents only, `(n, n_latents)`.

        Args:
            x: Inputs, `(n, d_in)`.
            latents: Which latents, int64 `(n_latents,)`.
            centre: What is subtracted from the inputs, for encoders that take it.
        """
        pre_codes: Tensor = self(x) if centre is None else self(x, centre)
        return pre_codes.index_select(-1, latents)

    def restart(self, latents: Tensor, inputs: Tensor, residuals: Tensor, alive: Tensor, share: float) -> None:
        """Put each of some latents at a sample, for `ResampleDeadLatents`; classes with `resamplable = True` have it.

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

    Shapes: input `(..., d_in)`, output `(..., d_sae)`; `centre` `(d_in,)` is subtracted from the inputs.
    """

    sparse = True
    rows_of_latents = frozenset({"weight", "bias"})
    resamplable = True
    takes_centre = True

    def __init__(self, d_in: int, d_sae: int, bias: bool = True, pre_code_scale: float = 1.0) -> None:
        super().__init__(d_in, d_sae)
        require_finite_positive("pre_code_scale", pre_code_scale)
        self.pre_code_scale = pre_code_scale
        self.bias = nn.Parameter(torch.zeros(d_sae)) if bias else None

    @property
    def _bias(self) -> Tensor | None:
        return None if self.bias is None else local(self.bias)

    def forward(self, x: Tensor, centre: Tensor | None = None) -> Tensor:
        """Return pre-codes in float32 (or float64), `(..., d_sae)`."""
        return affine(x, centre, local(self.weight), self._bias, self.pre_code_scale)

    def at(self, x: Tensor, pattern: Pattern, values: Tensor, centre: Tensor | None = None) -> Tensor:
        """Pre-codes at some positions, `(nnz,)`, with their gradient at O(nnz * d_in)."""
        return affine_at(x, centre, self.weight, self.bias, self.pre_code_scale, pattern, values)

    def among(self, x: Tensor, latents: Tensor, centre: Tensor | None = None) -> Tensor:
        """Pre-codes of some latents only, `(n, n_latents)`."""
        bias = None if self._bias is None else self._bias.index_select(0, latents)
        return affine(x, centre, local(self.weight).index_select(0, latents), bias, self.pre_code_scale)

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
        set_rows(self.weight, latents, factor * whole(self.weight.detach())[latents])

    def affine_form(self, up_to_a_shift: bool) -> tuple[Tensor, Tensor]:
        """The scaled weight and bias."""
        bias = self.weight.new_zeros(self.d_sae) if self._bias is None else self._bias
        return self.pre_code_scale * local(self.weight), self.pre_code_scale * bias

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

    sparse = True
    rows_of_latents = frozenset({"weight", "offset"})
    resamplable = True

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
    def _scale(self) -> Tensor:
        """Lambda for this process's own latents."""
        return self.scale if self.sharding is None else self.sharding.replicate(self.scale)

    @property
    def _offset(self) -> Tensor | None:
        return None if self.offset is None else at_least_float32(local(self.offset))

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
        return negative_squared_distance(x, local(self.weight), self._scale, self._offset)

    def at(self, x: Tensor, pattern: Pattern, values: Tensor, centre: Tensor | None = None) -> Tensor:
        """Pre-codes at some positions, `(nnz,)`, with their gradient at O(nnz * d_in)."""
        return distance_at(x, self.weight, self.scale, self._offset, pattern, values)

    def among(self, x: Tensor, latents: Tensor, centre: Tensor | None = None) -> Tensor:
        """Pre-codes of some latents only, `(n, n_latents)`."""
        offset = None if self._offset is None else self._offset.index_select(0, latents)
        return negative_squared_distance(x, local(self.weight).index_select(0, latents), self._scale, offset)

    def without_offset(self, pre_codes: Tensor, latents: Tensor | None = None) -> Tensor:
        r"""What is left of pre-codes without their offsets, $-\lambda \|x - w_i\|^2$.

        Args:
            pre_codes: Pre-codes of all latents (of this process), `(..., d_sae)`, or some, `(..., n)`.
            latents: Which latents these are, int64 `(n,)`; None for all.
        """
        if self._offset is None:
            return pre_codes
        return pre_codes - (self._offset if latents is None else self._offset.index_select(0, latents))

    def restart(self, latents: Tensor, inputs: Tensor, residuals: Tensor, alive: Tensor, share: float) -> None:
        """Put prototypes at the samples, with the mean offset of the live ones."""
        set_rows(self.weight, latents, inputs.to(self.weight.dtype))
        if self.offset is not None and self.offset_init is not None:
            set_rows(self.offset, latents, float(mean_of_live(self.offset.detach(), alive, self.offset_init)))

    def strengthen(self, latents: Tensor, factor: float) -> None:
        """Raise offsets. Without them a prototype at its sample has the largest pre-code there is."""
        if self.offset is not None:
            offset = whole(self.offset.detach())[latents]
            scale = F.softplus(at_least_float32(whole(self.raw_lambda.detach())))
            unit = scale * whole(self.weight.detach())[latents].square().sum(-1).mean()
            set_rows(self.offset, latents, (offset + (factor - 1) * (offset.abs() + unit)).to(offset.dtype))

    def affine_form(self, up_to_a_shift: bool) -> tuple[Tensor, Tensor] | None:
        r"""Up to $-\lambda \|x\|^2$, which all latents share: $2 \lambda w_i \cdot x + b_i - \lambda \|w_i\|^2$."""
        if not up_to_a_shift:
            return None
        rows, scale = local(self.weight).double(), self.scale.double()
        offset = -scale * rows.square().sum(-1)
        return 2 * scale * rows, offset if self._offset is None else offset + self._offset

    def receptive_field(self, firing: Firing) -> ReceptiveField | None:
        """Balls by level, cells by differences (which are affine) and among the largest: there balls cut by others."""
        return Ball() if firing == "level" else ConvexCell()

    def distances(self, pre_codes: Tensor) -> Tensor:
        """Recover the squared distances from the pre-codes of all latents (of this process), `(..., d_sae)`."""
        return -self.without_offset(pre_codes) / self.scale

    def dynamics(self) -> dict[str, Tensor]:
        """The current lambda and, where there are offsets, their mean."""
        found = {"lambda": self.scale.detach()}
        if self.offset is not None:
            found["offset_mean"] = whole(self.offset.detach()).mean()
        return found
