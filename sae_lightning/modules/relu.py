"""ReLU SAE."""

from typing import Any

from sae_lightning.modules.affine import AffineSAE
from sae_lightning.nn import L1, Orthant


class ReLUSAE(AffineSAE):
    r"""ReLU SAE: affine encoder, nonnegative orthant, L1 norm of the codes.

    $$ z = \max(s (W (x - b_{dec}) + b), 0), \qquad R = \sum_i z_i $$

    Each latent sees a half-space: a concept must be linearly separable to have a latent of its own.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        gamma: Weight of the L1 norm, at least 0.
        **shared: Arguments of `AffineSAE` and `BaseSAE`, by keyword.

    Example:
        >>> import torch
        >>> sae = ReLUSAE(d_in=8, d_sae=32, gamma=0.1)
        >>> sae.encode(torch.randn(5, 8)).shape
        torch.Size([5, 32])

    References:
        Bricken et al. (2023), Towards Monosemanticity; Cunningham et al. (2023), arXiv 2309.08600.
    """

    def __init__(self, d_in: int, d_sae: int, gamma: float = 1e-2, **shared: Any) -> None:
        super().__init__(d_in, d_sae, Orthant(d_sae), L1(d_sae), gamma, **shared)
