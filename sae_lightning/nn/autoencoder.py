"""The sparse autoencoder: encoder, projection and decoder as one torch module."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_lightning.nn.decoder import Decoder
from sae_lightning.nn.encoders import Encoder
from sae_lightning.nn.firing import fires
from sae_lightning.nn.parts import tells
from sae_lightning.nn.projections import Projection
from sae_lightning.nn.receptive_fields import ReceptiveField
from sae_lightning.nn.standardizer import Standardizer


class SAEOutput(NamedTuple):
    """Output of a forward pass."""

    x_hat: Tensor
    """Reconstructions, `(..., d_out)`."""
    codes: Tensor
    """Sparse codes, `(..., d_sae)`."""
    pre_codes: Tensor
    """Output of the encoder, before the projection, `(..., d_sae)`."""


class SparseAutoencoder(nn.Module):
    r"""Sparse autoencoder: an encoder, a projection onto a set of sparse codes, and a linear decoder.

    $$ v = \mathrm{encoder}(\tilde x), \qquad z = \Pi_S(v), \qquad \hat x = z W_{dec} + b_{dec} $$

    `forward`, `encode` and `decode` use raw units and any leading shape, and `forward(x).x_hat == decode(encode(x))`.
    `autoencode` uses standardized units, in which losses are computed. `sae_lightning.backends` runs training steps.

    Matrix products follow autocast or the dtype of the weights. Everything else stays in at least float32, even if the
    module is converted to half precision (docs/precision.md).

    Args:
        encoder: Maps standardized inputs to pre-codes.
        projection: Maps pre-codes to codes.
        decoder: Maps codes to standardized reconstructions.
        standardize: Whether to standardize the inputs.
        subtract_decoder_bias: Whether the encoder sees `x - b_dec` instead of `x`.
        targets: Whether to reconstruct targets `(..., d_out)`, standardized by themselves, instead of the inputs.
        input_layers: Number L of layers of inputs `(..., L, d_in / L)`, which the parts see side by side.

    Raises:
        ValueError: If the parts do not fit together.

    References:
        Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Affine, Decoder, KSparse, SparseAutoencoder
        >>> sae = SparseAutoencoder(Affine(3, 8), KSparse(8, k=2), Decoder(3, 8))
        >>> sae.encode(torch.ones(5, 3)).shape
        torch.Size([5, 8])
    """

    batches_silent: Tensor

    def __init__(
        self,
        encoder: Encoder,
        projection: Projection,
        decoder: Decoder,
        standardize: bool = True,
        subtract_decoder_bias: bool = False,
        targets: bool = False,
        input_layers: int | None = None,
    ) -> None:
        super().__init__()
        if not (projection.d_sae == encoder.d_sae == decoder.d_sae and (targets or decoder.d_out == encoder.d_in)):
            raise ValueError(
                f"encoder, projection and decoder must agree on d_in and d_sae, but they are for "
                f"{(encoder.d_sae, encoder.d_in)}, ({projection.d_sae},) and {(decoder.d_sae, decoder.d_out)}"
            )
        if targets and (subtract_decoder_bias or input_layers is not None):
            raise ValueError("targets cannot be combined with subtract_decoder_bias or input_layers")
        if encoder.nonpositive and not projection.shift_invariant:
            raise ValueError(
                f"{type(encoder).__name__} gives pre-codes that are never positive, so that "
                f"{type(projection).__name__} would give zeros only: use Simplex with it, or offsets (offset_init)"
            )
        if subtract_decoder_bias and decoder.bias is None:
            raise ValueError("subtract_decoder_bias needs a decoder with a bias (decoder_bias=True)")
        self.d_in = encoder.d_in
        self.d_sae = encoder.d_sae
        self.d_out = decoder.d_out
        self.standardizer = Standardizer(self.d_in, standardize, input_layers)
        self.target_standardizer = Standardizer(self.d_out, standardize) if targets else None
        self.encoder = encoder
        self.projection = projection
        self.decoder = decoder
        self.subtract_decoder_bias = subtract_decoder_bias
        self.register_buffer("batches_silent", torch.zeros(self.d_sae, dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move or convert the module, but keep vectors and scalars in at least float32: half precision ruins them."""

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            if tensor.ndim < 2 and tensor.is_floating_point() and converted.itemsize < 4:
                return tensor.to(converted.device)
            return converted

        return super()._apply(convert, recurse)  # type: ignore[no-untyped-call]

    def autoencode(self, x: Tensor) -> SAEOutput:
        """Run encoder, projection and decoder on standardized inputs; `x_hat` is standardized too."""
        pre_codes = self.pre_codes(x)
        codes = self.projection(pre_codes)
        return SAEOutput(self.decoder(codes), codes, pre_codes)

    def pre_codes(self, x: Tensor) -> Tensor:
        """Run the encoder on standardized inputs: `(..., d_in)` to `(..., d_sae)`."""
        center = self.center
        pre_codes: Tensor = self.encoder(x if center is None else x - center)
        return pre_codes

    @property
    def center(self) -> Tensor | None:
        """Vector subtracted from the encoder's inputs: the decoder's bias if `subtract_decoder_bias`, else None."""
        return self.decoder.bias if self.subtract_decoder_bias else None

    def standardize(self, x: Tensor) -> Tensor:
        """Check the shape of raw inputs and standardize them, `(..., d_in)`."""
        standardized: Tensor = self.standardizer(x)
        return standardized

    def standardize_pair(self, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """Standardize raw inputs, and what is to be reconstructed: raw targets, or the inputs without `targets`."""
        x = self.standardize(x)
        if self.target_standardizer is None:
            return x, x
        if target is None or target.shape != (*x.shape[:-1], self.d_out):
            got = "there is none" if target is None else f"has shape {tuple(target.shape)}"
            raise ValueError(f"a batch's target must have shape {(*x.shape[:-1], self.d_out)}, but {got}")
        return x, self.target_standardizer(target)

    def destandardize(self, x_hat: Tensor) -> Tensor:
        """Convert standardized reconstructions to raw units, in the shape of inputs or targets."""
        return (self.target_standardizer or self.standardizer).inverse(x_hat)

    def forward(self, x: Tensor) -> SAEOutput:
        """Return reconstructions in raw units, codes and pre-codes of raw inputs `(..., d_in)`."""
        out = self.autoencode(self.standardize(x))
        return out._replace(x_hat=self.destandardize(out.x_hat))

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of raw inputs: `(..., d_in)` to `(..., d_sae)`."""
        codes: Tensor = self.projection(self.pre_codes(self.standardize(x)))
        return codes

    def decode(self, codes: Tensor) -> Tensor:
        """Return reconstructions of codes in raw units: `(..., d_sae)` to `(..., d_out)`."""
        self.check_codes(codes)
        return self.destandardize(self.decoder(codes))

    def check_codes(self, codes: Tensor) -> None:
        """Raise a ValueError unless the last dimension of codes is `d_sae`."""
        if codes.shape[-1] != self.d_sae:
            raise ValueError(
                f"codes must have d_sae = {self.d_sae} in their last dimension, but have shape {tuple(codes.shape)}"
            )

    @torch.no_grad()
    def count_silence(self, fired: Tensor) -> None:
        """Add one batch to `batches_silent` of each latent, and reset it for those that `fired`, bool `(d_sae,)`."""
        self.batches_silent.add_(1).masked_fill_(fired, 0)

    @staticmethod
    @torch.no_grad()
    def fired(codes: Tensor) -> Tensor:
        """Return which latents fire on at least one sample of codes `(..., d_sae)`, bool `(d_sae,)`."""
        rows = codes.flatten(0, -2)
        return fires(torch.maximum(rows.amax(0), -rows.amin(0)))  # not `abs`, which would copy all codes

    def receptive_field(self) -> ReceptiveField | None:
        """Return the shape of the set on which a latent fires, or None if the parts do not declare it."""
        firing = self.projection.firing
        if firing is None or not tells(self.projection, "firing") or not tells(self.encoder, "receptive_field"):
            return None
        return self.encoder.receptive_field(firing)

    def dynamics(self) -> dict[str, Tensor]:
        """Return scalars to log during training, by name."""
        return {**self.encoder.dynamics(), **self.projection.dynamics()}
