"""Regularizers: what an architecture pays for its codes, one value per sample."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sae_lightning.nn.encoders import SquaredDistance
from sae_lightning.nn.functional import k_sparse, step
from sae_lightning.nn.parts import Part, require_positive
from sae_lightning.nn.projections import Jump
from sae_lightning.nn.sharding import k_sparse_over
from sae_lightning.nn.sparse import SparseCodes

if TYPE_CHECKING:
    from sae_lightning.nn.autoencoder import SAEOutput, SparseAutoencoder, SparseOutput


class Regularizer(Part, nn.Module, ABC):
    """Base of all regularizers: called as `regularizer(sae, x, out)`, returns one value per sample, `(batch,)`.

    A subclass that can read a SparseOutput too says so with `sparse = True`; without it training is dense.

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
    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput | SparseOutput") -> Tensor:
        """Return what each sample pays, `(batch,)`, for standardised inputs `x`."""

    def check(self, sae: "SparseAutoencoder") -> None:
        """Raise a ValueError where this regularizer cannot work with the parts of `sae`."""


def _over_all(sae: "SparseAutoencoder", sums: Tensor) -> Tensor:
    """Sums over all latents from those over this process's own, `(batch,)`."""
    return sums if sae.sharding is None else sae.sharding.sum(sums)


def _magnitudes(codes: Tensor) -> Tensor:
    """|codes|, with the gradient 1 at zero: `abs` has 0 there, and thresholds are trained by codes that are zero."""
    return torch.where(codes < 0, -codes, codes)


class L1(Regularizer):
    r"""L1 norm of the codes, $\sum_i |z_i|$.

    At zero the gradient is taken from above, as for a code that is about to fire.
    """

    sparse = True
    rows_of_latents = frozenset()

    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput | SparseOutput") -> Tensor:
        """Return the norm per sample, `(batch,)`."""
        if isinstance(out.codes, SparseCodes):
            return out.codes.total(_magnitudes(out.codes.values))
        return _over_all(sae, _magnitudes(out.codes).sum(-1))


class L0(Regularizer):
    r"""Number of latents above their threshold, $\sum_i H(v_i - \theta_i)$, with a straight-through gradient.

    Source: Rajamanoharan et al. (2024), arXiv 2407.14435.
    """

    sparse = True
    rows_of_latents = frozenset()

    def check(self, sae: "SparseAutoencoder") -> None:
        """Require the projection with thresholds."""
        if not isinstance(sae.projection, Jump):
            got = type(sae.projection).__name__
            raise ValueError(f"the regularizer L0 needs the projection Jump (it trains thresholds), but got {got}")

    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput | SparseOutput") -> Tensor:
        """Return the count per sample, `(batch,)`."""
        projection = sae.projection
        assert isinstance(projection, Jump)
        v, threshold = out.pre_codes, projection.threshold
        if isinstance(v, SparseCodes):
            threshold = threshold.index_select(0, v.pattern.latents)
            return v.total(step(v.values, threshold, projection.bandwidth))
        return _over_all(sae, step(v, threshold, projection.bandwidth).sum(-1))


class DistanceWeightedL1(Regularizer):
    r"""Codes weighted by the squared distance to their prototypes, $\sum_i z_i \|x - w_i\|^2$.

    The gradient flows through the codes and the prototypes; an offset of the encoder is no part of the distance. (The
    plain L1 norm is constant on the simplex.)

    Source: Tasissa et al. (2023), K-deep simplex, arXiv 2012.02134; used for SpaDE in arXiv 2503.01822.
    """

    sparse = True
    rows_of_latents = frozenset()

    def check(self, sae: "SparseAutoencoder") -> None:
        """Require the encoder with prototypes."""
        if not isinstance(sae.encoder, SquaredDistance):
            got = type(sae.encoder).__name__
            raise ValueError(f"DistanceWeightedL1 needs the encoder SquaredDistance (it has prototypes), but got {got}")

    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput | SparseOutput") -> Tensor:
        """Return the weighted norm per sample, `(batch,)`."""
        encoder = sae.encoder
        assert isinstance(encoder, SquaredDistance)
        z, v = out.codes, out.pre_codes
        # lambda is divided by last: once per sample instead of once per code
        if isinstance(z, SparseCodes) and isinstance(v, SparseCodes):
            return -z.total(z.values * encoder.without_offset(v.values, v.pattern.latents)) / encoder.scale
        assert isinstance(z, Tensor)
        assert isinstance(v, Tensor)
        return -_over_all(sae, (z * encoder.without_offset(v)).sum(-1)) / encoder.scale


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

    sparse = True
    rows_of_latents = frozenset()

    def __init__(self, d_sae: int, k_aux: int | None = None, dead_after: int = 20) -> None:
        super().__init__(d_sae)
        if k_aux is not None:
            require_positive("k_aux", k_aux)
        require_positive("dead_after", dead_after)
        self.k_aux = k_aux
        self.dead_after = dead_after

    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput | SparseOutput") -> Tensor:
        """Return the squared error of the residual's reconstruction per sample, `(batch,)`."""
        dead = (sae.batches_silent >= self.dead_after).nonzero().squeeze(-1)
        if len(dead) == 0:
            return torch.zeros_like(x[..., 0])
        k = min(self.k_aux or max(1, sae.d_in // 2), len(dead))
        residual = (x - out.x_hat).detach()
        if isinstance(out.codes, SparseCodes):
            explained = sae.decoder.combine(sae.codes_among(x, dead, k))
        elif sae.sharding is not None:
            own, most = sae.sharding.among_own(dead), sae.sharding.most_on_one(dead)
            codes = k_sparse_over(sae.pre_codes_among(x, own), k, sae.sharding, min(k, most))
            explained = sae.decoder.combine(codes, own)
        else:
            explained = sae.decoder.combine(k_sparse(sae.pre_codes_among(x, dead), k), dead)
        return (residual - explained).square().sum(-1)
