"""Base of the SAEs with an affine encoder and a dictionary that reconstructs the inputs."""

from typing import Any

from sae_lightning.modules.arguments import require_passed
from sae_lightning.modules.base import BaseSAE
from sae_lightning.nn import Affine, Decoder, Projection, Regularizer


class AffineSAE(BaseSAE):
    r"""An SAE whose pre-codes are affine, $v = s (W (x - b_{dec}) + b)$; subclasses choose projection and regularizer.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        projection: Maps pre-codes to sparse codes.
        regularizer: What codes cost, or None.
        gamma: Weight of the regularizer, at least 0.
        encoder_bias: Whether latents have a bias.
        decoder_bias: Whether reconstructions have a bias.
        subtract_decoder_bias: Whether the encoder sees `x - b_dec` (needs `decoder_bias`).
        normalize_decoder: Whether atoms have unit norm; without it, a penalty on the size of codes can be escaped by
            larger atoms.
        pre_code_scale: Frozen factor s of the pre-codes; Hindupur et al. used `1 / (2 * d_in)`.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        projection: Projection,
        regularizer: Regularizer | None,
        gamma: float,
        *,
        encoder_bias: bool = True,
        decoder_bias: bool = True,
        subtract_decoder_bias: bool = True,
        normalize_decoder: bool = True,
        pre_code_scale: float = 1.0,
        **shared: Any,
    ) -> None:
        received = {
            "encoder_bias": encoder_bias,
            "decoder_bias": decoder_bias,
            "subtract_decoder_bias": subtract_decoder_bias,
            "normalize_decoder": normalize_decoder,
            "pre_code_scale": pre_code_scale,
        }
        require_passed(self, AffineSAE, received)
        super().__init__(
            encoder=Affine(d_in, d_sae, encoder_bias, pre_code_scale),
            projection=projection,
            decoder=Decoder(d_in, d_sae, decoder_bias, normalize_decoder),
            regularizer=regularizer,
            gamma=gamma,
            subtract_decoder_bias=subtract_decoder_bias,
            **shared,
        )
