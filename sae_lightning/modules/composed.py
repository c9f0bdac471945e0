"""ComposedSAE: any encoder with any projection and any regularizer."""

from collections.abc import Callable
from typing import Any

from sae_lightning.modules.base import BaseSAE
from sae_lightning.nn import Decoder, Encoder, Projection, Regularizer


class ComposedSAE(BaseSAE):
    """An SAE from parts that the user names: each part is a class, or a class with some of its arguments.

    Args:
        d_in: Size of an activation.
        d_sae: Number of latents.
        encoder: Makes the encoder from `d_in` and `d_sae`.
        projection: Makes the projection from `d_sae`.
        regularizer: Makes the regularizer from `d_sae`; None for none.
        gamma: Weight of the regularizer, at least 0.
        decoder_bias: Whether reconstructions have a bias.
        subtract_decoder_bias: Whether the encoder sees `x - b_dec` (needs `decoder_bias`).
        normalize_decoder: Whether atoms have unit norm.
        l0_init: Mean L0 on the first training samples to which the initial lambda of a distance encoder is
            calibrated, from 1 to `d_sae` (with KSparse: positive pre-codes, of which it keeps k); None leaves it.
        **shared: Arguments of `BaseSAE`, by keyword.

    Raises:
        ValueError: If the parts do not fit each other.

    Example:
        >>> from functools import partial
        >>> from sae_lightning.nn import L1, Affine, KSparse
        >>> sae = ComposedSAE(8, 32, encoder=Affine, projection=partial(KSparse, k=4), regularizer=L1)
        >>> sae.describe()["init_args"]["projection"]["init_args"]
        {'k': 4}
    """

    def __init__(
        self,
        d_in: int,
        d_sae: int,
        encoder: Callable[[int, int], Encoder],
        projection: Callable[[int], Projection],
        regularizer: Callable[[int], Regularizer] | None = None,
        gamma: float = 1e-2,
        decoder_bias: bool = True,
        subtract_decoder_bias: bool = False,
        normalize_decoder: bool = False,
        l0_init: float | None = None,
        **shared: Any,
    ) -> None:
        parts: dict[str, Encoder | Projection | Regularizer | None] = {
            "encoder": encoder(d_in, d_sae),
            "projection": projection(d_sae),
            "regularizer": None if regularizer is None else regularizer(d_sae),
        }
        # factories cannot be stored in a checkpoint: what they made describes itself in plain values
        self.init_args.update({name: part and part.describe() for name, part in parts.items()})
        super().__init__(
            **parts,  # type: ignore[arg-type]
            decoder=Decoder(d_in, d_sae, decoder_bias, normalize_decoder),
            gamma=gamma,
            subtract_decoder_bias=subtract_decoder_bias,
            l0_init=l0_init,
            **shared,
        )
