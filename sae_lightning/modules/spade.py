"""SpaDE, the sparsemax distance encoder."""

from typing import Any

from sae_lightning.modules.base import BaseSAE
from sae_lightning.nn import Decoder, DistanceWeightedL1, Initialization, Simplex, SquaredDistance


class SpaDE(BaseSAE):
    r"""SpaDE: squared distances to prototypes, probability simplex, distance-weighted L1.

    $$ z = \mathrm{sparsemax}(-\lambda \|x - w_i\|^2), \qquad R = \sum_i z_i \|x - w_i\|^2 $$

    Each latent sees a convex polytope around its prototype, so concepts need not be linearly separable, and each
    concept takes as many latents as its dimension asks for.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        gamma: Weight of the distance-weighted L1 norm, at least 0.
        lambda_init: Initial lambda, positive; None calibrates it to `l0_init`.
        l0_init: Mean L0 on the first training samples to which the initial lambda is calibrated, from 1 to `d_sae`;
            None means 16 (at most half of `d_sae`), unless `lambda_init` is given.
        decoder_bias: Whether reconstructions have a bias.
        normalize_decoder: Whether atoms have unit norm.
        init: Initial prototypes and atoms: data points, unit vectors, or standard normals (the authors' choice).
        **shared: Arguments of `BaseSAE`, by keyword.

    Raises:
        ValueError: If both `lambda_init` and `l0_init` are given.

    Example:
        >>> import torch
        >>> sae = SpaDE(d_in=8, d_sae=32)
        >>> codes = sae.encode(torch.randn(5, 8))
        >>> bool((codes >= 0).all()), codes.sum(-1).round(decimals=4).tolist()
        (True, [1.0, 1.0, 1.0, 1.0, 1.0])

    References:
        Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        gamma: float = 1e-2,
        lambda_init: float | None = None,
        l0_init: float | None = None,
        decoder_bias: bool = False,
        normalize_decoder: bool = False,
        *,
        init: Initialization = "data",
        **shared: Any,
    ) -> None:
        if lambda_init is not None and l0_init is not None:
            raise ValueError(f"give lambda_init or l0_init, not both: they are {lambda_init} and {l0_init}")
        if lambda_init is None and l0_init is None:
            l0_init = max(1.0, min(16.0, d_sae / 2))
        super().__init__(
            encoder=SquaredDistance(d_in, d_sae, 1.0 if lambda_init is None else lambda_init),
            projection=Simplex(d_sae),
            decoder=Decoder(d_in, d_sae, decoder_bias, normalize_decoder),
            regularizer=DistanceWeightedL1(d_sae),
            gamma=gamma,
            l0_init=l0_init,
            init=init,
            **shared,
        )
