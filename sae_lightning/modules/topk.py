"""TopK SAE."""

from typing import Any

from sae_lightning.modules.affine import AffineSAE
from sae_lightning.nn import AuxK, KSparse


class TopKSAE(AffineSAE):
    r"""TopK SAE: affine encoder, at most k codes per sample, dead latents revived by the residual.

    $$ z = \mathrm{TopK}(s W (x - b_{dec}))_+, \qquad R = \|e - z_{aux} W_{dec}\|^2 $$

    Each latent sees a union of cones with one apex: concepts must be separable by their angle, and every concept
    gets the same dimension k.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        k: Number of codes to keep per sample, from 1 to `d_sae`.
        gamma: Weight of the aux-k loss, at least 0; 0 switches it off.
        k_aux: How many dead latents explain the residual; None takes half of `d_in`.
        dead_after: A latent is dead after this many training batches in which it never fired.
        encoder_bias: Whether latents have a bias.
        **shared: Arguments of `AffineSAE` and `BaseSAE`, by keyword.

    Example:
        >>> import torch
        >>> sae = TopKSAE(d_in=8, d_sae=32, k=3)
        >>> int((sae.encode(torch.randn(100, 8)) != 0).sum(-1).max())
        3

    References:
        Gao et al. (2024), arXiv 2406.04093.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        k: int = 32,
        gamma: float = 1 / 32,
        k_aux: int | None = None,
        dead_after: int = 20,
        *,
        encoder_bias: bool = False,
        **shared: Any,
    ) -> None:
        regularizer = AuxK(d_sae, k_aux, dead_after)
        super().__init__(d_in, d_sae, KSparse(d_sae, k), regularizer, gamma, encoder_bias=encoder_bias, **shared)
