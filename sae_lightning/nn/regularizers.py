"""Regularizers: penalties on the codes, one value per sample."""

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
        """Return the penalty per sample, `(batch,)`, for standardized inputs `x` `(batch, d_in)`."""

    def check(self, sae: "SparseAutoencoder") -> None:
        """Raise a ValueError if this regularizer cannot be used with the parts of `sae`."""


def magnitudes(codes: Tensor) -> Tensor:
    """Return |codes| with gradient 1 at zero: `abs` has gradient 0 there, but codes at zero train thresholds."""
    return torch.where(codes < 0, -codes, codes)


class L1(Regularizer):
    r"""L1 norm of the codes, $\sum_i |z_i|$, with gradient 1 for codes at zero.

    Args:
        d_sae: Number of latents.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import L1, Affine, Decoder, Orthant, SparseAutoencoder
        >>> sae = SparseAutoencoder(Affine(2, 3), Orthant(3), Decoder(2, 3))
        >>> x = torch.zeros(1, 2)
        >>> out = sae.autoencode(x)._replace(codes=torch.tensor([[1.0, 0.0, 2.0]]))
        >>> L1(3)(sae, x, out)
        tensor([3.])
    """

    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput") -> Tensor:
        """Return the norm per sample, `(batch,)`."""
        return magnitudes(out.codes).sum(-1)


class L0(Regularizer):
    r"""Number of latents above their threshold, $\sum_i H(v_i - \theta_i)$, with a straight-through gradient.

    Args:
        d_sae: Number of latents.

    References:
        Rajamanoharan et al. (2024), arXiv 2407.14435.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import L0, Affine, Decoder, Jump, SparseAutoencoder
        >>> sae = SparseAutoencoder(Affine(2, 3), Jump(3, threshold_init=1.0), Decoder(2, 3))
        >>> x = torch.zeros(1, 2)
        >>> out = sae.autoencode(x)._replace(pre_codes=torch.tensor([[0.5, 1.5, 3.0]]))
        >>> L0(3)(sae, x, out).tolist()
        [2.0]
    """

    def check(self, sae: "SparseAutoencoder") -> None:
        """Require the projection `Jump`, whose thresholds this penalty trains."""
        if not isinstance(sae.projection, Jump):
            got = type(sae.projection).__name__
            raise ValueError(f"the regularizer L0 needs the projection Jump (it trains thresholds), but got {got}")

    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput") -> Tensor:
        """Return the number per sample, `(batch,)`."""
        projection = sae.projection
        assert isinstance(projection, Jump)
        return step(out.pre_codes, projection.threshold, projection.bandwidth).sum(-1)


class DistanceWeightedL1(Regularizer):
    r"""Sum of the codes, weighted by the squared distance to their prototypes: $\sum_i z_i \|x - w_i\|^2$.

    Gradients flow through codes and prototypes. Used for SpaDE, since the L1 norm is constant on the simplex.

    References:
        Tasissa et al. (2023), K-deep simplex, arXiv 2012.02134; Hindupur et al. (2025), arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Decoder, DistanceWeightedL1, Simplex, SparseAutoencoder, SquaredDistance
        >>> sae, x = SparseAutoencoder(SquaredDistance(2, 3), Simplex(3), Decoder(2, 3)), torch.tensor([[2.0, 0.0]])
        >>> DistanceWeightedL1(3)(sae, x, sae.autoencode(x)).item()  # all prototypes are zero, the codes sum to one
        4.0
    """

    def check(self, sae: "SparseAutoencoder") -> None:
        """Require the encoder `SquaredDistance`, which has prototypes."""
        if not isinstance(sae.encoder, SquaredDistance):
            got = type(sae.encoder).__name__
            raise ValueError(f"DistanceWeightedL1 needs the encoder SquaredDistance (it has prototypes), but got {got}")

    def forward(self, sae: "SparseAutoencoder", x: Tensor, out: "SAEOutput") -> Tensor:
        """Return the weighted norm per sample, `(batch,)`."""
        encoder = sae.encoder
        assert isinstance(encoder, SquaredDistance)
        # dividing by lambda last costs one division per sample instead of one per code
        return -(out.codes * encoder.without_offset(out.pre_codes)).sum(-1) / encoder.scale


class AuxK(Regularizer):
    r"""Squared error with which dead latents reconstruct the residual: $\|e - z_{aux} W_{dec}\|^2$, $e = x - \hat x$.

    $z_{aux}$ are the `k_aux` largest pre-codes among dead latents, clipped at zero. Gradients reach the atoms and the
    encoder rows of these latents, but not $e$. The penalty is zero while no latent is dead.

    Args:
        d_sae: Number of latents.
        k_aux: Number of dead latents that reconstruct each residual; None for half of `d_in`, at least one.
        dead_after: Number of consecutive training batches without firing after which a latent is dead.

    Raises:
        ValueError: If `k_aux` or `dead_after` is below 1.

    References:
        Gao et al. (2024), arXiv 2406.04093.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Affine, AuxK, Decoder, KSparse, SparseAutoencoder
        >>> sae, x = SparseAutoencoder(Affine(2, 3), KSparse(3, k=1), Decoder(2, 3)), torch.tensor([[3.0, 4.0]])
        >>> aux_k = AuxK(3, dead_after=5)
        >>> aux_k(sae, x, sae.autoencode(x)).item()  # no latent is dead
        0.0
        >>> _ = sae.batches_silent.fill_(5)
        >>> aux_k(sae, x, sae.autoencode(x)).item()  # all are dead, but their atoms are zero
        25.0
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
        """Return the squared error per sample, `(batch,)`."""
        dead = self.dead(sae)
        if len(dead) == 0:
            return torch.zeros_like(x[..., 0])
        codes = k_sparse(out.pre_codes.index_select(-1, dead), self.n_codes(sae, dead))
        return self.error(x, out.x_hat, sae.decoder.combine(codes, dead))

    def dead(self, sae: "SparseAutoencoder") -> Tensor:
        """Return the dead latents, int64 `(n_dead,)`."""
        return (sae.batches_silent >= self.dead_after).nonzero().squeeze(-1)

    def n_codes(self, sae: "SparseAutoencoder", dead: Tensor) -> int:
        """Return how many of the dead latents `dead` reconstruct each residual."""
        return min(self.k_aux or max(1, sae.d_in // 2), len(dead))

    @staticmethod
    def error(x: Tensor, x_hat: Tensor, explained: Tensor) -> Tensor:
        """Return the squared error of `explained` as a reconstruction of the detached residual, `(batch,)`."""
        return ((x - x_hat).detach() - explained).square().sum(-1)
