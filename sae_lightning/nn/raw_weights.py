"""Weights of an SAE in raw units: standardization, norms and scales folded into plain matrices."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sae_lightning.nn.parts import tells
from sae_lightning.nn.rows import is_dtensor

if TYPE_CHECKING:
    from sae_lightning.nn.autoencoder import SparseAutoencoder


class RawWeights(NamedTuple):
    r"""Weights that compute codes and reconstructions from raw inputs, with the field's usual names and shapes.

    $$ z = \Pi_S(x W_{enc} + b_{enc}), \qquad \hat x = z W_{dec} + b_{dec} $$

    `W_enc` and `b_enc` are None if pre-codes are not affine in the inputs. (Distances are affine up to a shift that all
    latents share, which `Simplex` ignores.)
    """

    W_enc: Tensor | None
    """Encoder matrix, `(d_in, d_sae)`: column i belongs to latent i."""
    b_enc: Tensor | None
    """Encoder bias, `(d_sae,)`."""
    W_dec: Tensor
    """Dictionary, `(d_sae, d_out)`: row i is what latent i adds to the reconstruction per unit of its code."""
    b_dec: Tensor
    """Decoder bias, `(d_out,)`: the reconstruction if no latent fires."""


@torch.no_grad()
def raw_weights(sae: "SparseAutoencoder") -> RawWeights:
    r"""Fold standardization, scales, norms and biases of an SAE into four tensors, computed in float64.

    With $\tilde x = (x - \mu) / s$, pre-codes $v = \tilde x A + a$ and atoms $D$:
    $W_{enc} = A / s$, $b_{enc} = a - \mu A / s$, $W_{dec} = s D$, $b_{dec} = s b + \mu$.

    Args:
        sae: The SAE, which is not changed.

    Returns:
        Tensors in float64 if the SAE is in float64, else in float32.

    Raises:
        ValueError: If the latents of the SAE are distributed over several processes.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Affine, Decoder, Orthant, SparseAutoencoder
        >>> from sae_lightning.nn.raw_weights import raw_weights
        >>> sae = SparseAutoencoder(Affine(1, 2), Orthant(2), Decoder(1, 2))
        >>> _ = torch.nn.init.ones_(sae.encoder.weight)
        >>> sae.standardizer.fit(torch.tensor([[8.0], [8.0], [12.0], [12.0]]))  # mean 10, standard deviation 2
        >>> weights = raw_weights(sae)
        >>> weights.W_enc.tolist(), weights.b_enc.tolist()  # (x - 10) / 2
        ([[0.5, 0.5]], [-5.0, -5.0])
    """
    if is_dtensor(sae.encoder.weight):
        raise ValueError("weights in raw units need an SAE on one process: load its checkpoint instead (load_sae)")
    mean, scale = sae.standardizer.input_mean.double(), sae.standardizer.input_scale.double()
    output = sae.target_standardizer or sae.standardizer
    out_mean, out_scale = output.input_mean.double(), output.input_scale.double()
    bias = torch.zeros_like(out_mean) if sae.decoder.bias is None else sae.decoder.bias.double()
    dtype = torch.float64 if sae.decoder.weight.dtype == torch.float64 else torch.float32
    w_enc = b_enc = None
    form = sae.encoder.affine_form(sae.projection.shift_invariant) if tells(sae.encoder, "affine_form") else None
    if form is not None:
        matrix, offset = form[0].double(), form[1].double()
        center = mean / scale + (bias if sae.subtract_decoder_bias else 0)
        w_enc, b_enc = (matrix / scale).T.to(dtype).contiguous(), (offset - matrix @ center).to(dtype)
    w_dec, b_dec = out_scale * sae.decoder.atoms.double(), out_scale * bias + out_mean
    return RawWeights(w_enc, b_enc, w_dec.to(dtype), b_dec.to(dtype))
