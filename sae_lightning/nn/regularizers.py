"""Regularizers: what an architecture pays for its codes, one value per sample."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sae_lightning.nn.encoders import SquaredDistance
from sae_lightning.nn.functional import k_sparse, step
from sae_lightning.nn.parts import Part, require_positive
from sae_lightning.nn.projections import Jump

if TYPE_CHECKING:
    from sae_lightning.nn.autoencoder import SAEOutput, SparseAutoencoder


class Regularizer(Part, nn.Module, ABC):
    """Base of all regularizers: called as `regularizer(sae, x, out)`, returns one value per sample, `(batch,)`.

    Args:
        d_sae: Number of latents.

    Raises:
        ValueError: If `d_sae` is below 1.
    """

    undescribed = frozenset({"d_in", "d_sae"})

    def __init__(self, d_sae: int) -> None:
        super().__init__()
        require_positive("d_sae", d_sae)
        self.d_sae = d_sae

    @abstractmethod
    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput") -> Tensor:
        """Return what each sample pays, `(batch,)`, for standardised inputs `x`."""

    def check(self, sae: "SparseAutoencoder") -> None:
        """Raise a ValueError where this regularizer cannot work with the parts of `sae`."""


def magnitudes(codes: Tensor) -> Tensor:
    """|codes|, with the gradient 1 at zero: `abs` has 0 there, and thresholds are trained by codes that are zero."""
    return torch.where(codes < 0, -codes, codes)


class L1(Regularizer):
    r"""L1 norm of the codes, $\sum_i |z_i|$.

    At zero the gradient is taken from above, as for a code that is about to fire.
    """

    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput") -> Tensor:
        """Return the norm per sample, `(batch,)`."""
        return magnitudes(out.codes).sum(-1)


class L0(Regularizer):
    r"""Number of latents above their threshold, $\sum_i H(v_i - \theta_i)$, with a straight-through gradient.

    Source: Rajamanoharan et al. (2024), arXiv 2407.14435.
    """

    def check(self, sae: "SparseAutoencoder") -> None:
        """Require the projection with thresholds."""
        if not isinstance(sae.projection, Jump):
            got = type(sae.projection).__name__
            raise ValueError(f"the regularizer L0 needs the projection Jump (it trains thresholds), but got {got}")

    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput") -> Tensor:
        """Return the count per sample, `(batch,)`."""
        projection = sae.projection
        assert isinstance(projection, Jump)
        return step(out.pre_codes, projection.threshold, projection.bandwidth).sum(-1)


class DistanceWeightedL1(Regularizer):
    r"""Codes weighted by the squared distance to their prototypes, $\sum_i z_i \|x - w_i\|^2$.

    The gradient flows through the codes and the prototypes; an offset of the encoder is no part of the distance. (The
    plain L1 norm is constant on the simplex.)

    Source: Tasissa et al. (2023), K-deep simplex, arXiv 2012.02134; used for SpaDE in arXiv 2503.01822.
    """

    def check(self, sae: "SparseAutoencoder") -> None:
        """Require the encoder with prototypes."""
        if not isinstance(sae.encoder, SquaredDistance):
            got = type(sae.encoder).__name__
            raise ValueError(f"DistanceWeightedL1 needs the encoder SquaredDistance (it has prototypes), but got {got}")

    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput") -> Tensor:
        """Return the weighted norm per sample, `(batch,)`."""
        encoder = sae.encoder
        assert isinstance(encoder, SquaredDistance)
        # lambda is divided by last: once per sample instead of once per code
        return -(out.codes * encoder.without_offset(out.pre_codes)).sum(-1) / encoder.scale


class AuxK(Regularizer):
    r"""Lets dead latents explain the residual: $\|e - z_{aux} W_{dec}\|^2$ with $e = x - \hat x$ held fixed.

    $z_{aux}$ are the `k_aux` largest pre-codes among dead latents, clipped at zero; the gradient reaches their
    atoms and, through the pre-codes, their encoder rows. Zero while no latent is dead.

    Args:
        d_sae: Number of latents.
        k_aux: How many dead latents explain each sample; None takes half of `d_in`, at least one.
        dead_after: A latent is dead after this many training batches in which it never fired.

    Raises:
        ValueError: If `k_aux` or `dead_after` is below 1.

    Source: Gao et al. (2024), arXiv 2406.04093.
    """

    def __init__(self, d_sae: int, k_aux: int | None = None, dead_after: int = 20) -> None:
        super().__init__(d_sae)
        if k_aux is not None:
            require_positive("k_aux", k_aux)
        require_positive("dead_after", dead_after)
        self.k_aux = k_aux
        self.dead_after = dead_after

    def check(self, sae: "SparseAutoencoder") -> None:
        """Require an SAE that reconstructs its inputs."""
        if sae.target_standardizer is not None:
            raise ValueError("AuxK explains the residual of inputs, so it cannot be combined with targets")

    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput") -> Tensor:
        """Return the squared error of the residual's reconstruction per sample, `(batch,)`."""
        dead = self.dead(sae)
        if len(dead) == 0:
            return torch.zeros_like(x[..., 0])
        codes = k_sparse(out.pre_codes.index_select(-1, dead), self.n_codes(sae, dead))
        return self.error(x, out.x_hat, sae.decoder.combine(codes, dead))

    def dead(self, sae: "SparseAutoencoder") -> Tensor:
        """The dead latents, int64 `(n_dead,)`."""
        return (sae.batches_silent >= self.dead_after).nonzero().squeeze(-1)

    def n_codes(self, sae: "SparseAutoencoder", dead: Tensor) -> int:
        """How many of some dead latents explain each sample."""
        return min(self.k_aux or max(1, sae.d_in // 2), len(dead))

    @staticmethod
    def error(x: Tensor, x_hat: Tensor, explained: Tensor) -> Tensor:
        """What is left of the residual, held fixed, without the part that is explained, `(batch,)`."""
        return ((x - x_hat).detach() - explained).square().sum(-1)
