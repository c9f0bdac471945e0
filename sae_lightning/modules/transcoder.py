"""ReLU transcoder."""

from typing import Any

from sae_lightning.modules.base import BaseSAE
from sae_lightning.nn import L1, Affine, Decoder, Orthant


class Transcoder(BaseSAE):
    r"""ReLU transcoder: sparse codes of one activation reconstruct another, such as an MLP's input and its output.

    $$ z = \max(s (W x + b), 0), \qquad \hat y = z W_{dec} + b_{dec}, \qquad R = \sum_i z_i $$

    Its data must give a `target` with each batch; inputs and targets have standardizers of their own. Each latent sees
    a half-space of the inputs.

    Args:
        d_in: Size of an input.
        d_sae: Number of latents.
        d_out: Size of a target. The command line takes that of the data; a member of a Comparison needs it given.
        gamma: Weight of the L1 norm, at least 0.
        encoder_bias: Whether latents have a bias.
        decoder_bias: Whether reconstructions have a bias.
        normalize_decoder: Whether atoms have unit norm.
        pre_code_scale: Frozen factor s of the pre-codes.
        **shared: Arguments of `BaseSAE`, by keyword.

    Raises:
        ValueError: If `d_out` is missing, as it is where the data have no targets.

    Example:
        >>> import torch
        >>> transcoder = Transcoder(d_in=8, d_sae=32, d_out=3)
        >>> transcoder(torch.randn(5, 8)).x_hat.shape
        torch.Size([5, 3])

    References:
        Dunefsky, Chlenski and Nanda (2024), arXiv 2406.11944.
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        d_out: int | None = None,
        gamma: float = 1e-2,
        encoder_bias: bool = True,
        decoder_bias: bool = True,
        normalize_decoder: bool = True,
        pre_code_scale: float = 1.0,
        **shared: Any,
    ) -> None:
        if d_out is None:
            raise ValueError(
                "d_out must be the size of the targets, but is None: the data have no `d_out`, or the transcoder is a "
                "member of a Comparison, where d_out must be given"
            )
        super().__init__(
            encoder=Affine(d_in, d_sae, encoder_bias, pre_code_scale),
            projection=Orthant(d_sae),
            decoder=Decoder(d_out, d_sae, decoder_bias, normalize_decoder),
            regularizer=L1(d_sae),
            gamma=gamma,
            targets=True,
            **shared,
        )
