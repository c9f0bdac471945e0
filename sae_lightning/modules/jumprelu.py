"""JumpReLU SAE."""

from typing import Any

from sae_lightning.modules.affine import AffineSAE
from sae_lightning.nn import L0, Jump


class JumpReLUSAE(AffineSAE):
    r"""JumpReLU SAE: affine encoder, orthant with a jump at a trained threshold, number of firing latents.

    $$ v = s (W (x - b_{dec}) + b), \qquad z_i = v_i H(v_i - \theta_i), \qquad R = \sum_i H(v_i - \theta_i) $$

    Each latent sees a half-space: a concept must be linearly separable to have a latent of its own.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        gamma: Weight of the L0 term, at least 0.
        threshold_init: Initial threshold of every latent, in units of the pre-codes, positive.
        bandwidth: Width of the rectangle kernel of the straight-through gradient, positive.
        **shared: Arguments of `AffineSAE` and `BaseSAE`, by keyword.

    Example:
        >>> sae = JumpReLUSAE(d_in=8, d_sae=4, threshold_init=0.5)
        >>> sae.threshold
        tensor([0.5000, 0.5000, 0.5000, 0.5000])

    References:
        Rajamanoharan et al. (2024), arXiv 2407.14435.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        gamma: float = 1e-3,
        threshold_init: float = 1e-3,
        bandwidth: float = 1e-3,
        **shared: Any,
    ) -> None:
        super().__init__(d_in, d_sae, Jump(d_sae, threshold_init, bandwidth), L0(d_sae), gamma, **shared)
