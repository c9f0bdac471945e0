"""The weights of an SAE in raw units: standardisation, norms and scales folded into plain matrices."""

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from sae_lightning.nn.parts import tells
from sae_lightning.nn.rows import is_dtensor

if TYPE_CHECKING:
    from sae_lightning.nn.autoencoder import SparseAutoencoder


class RawWeights(NamedTuple):
    r"""What an SAE computes, in raw units and the field's names and shapes.

    $$ z = \Pi_S(x W_{enc} + b_{enc}), \qquad \hat x = z W_{dec} + b_{dec} $$

    The encoder's are None where pre-codes are not affine in the inputs (distances, unless the projection ignores what
    all latents share).
    """

    W_enc: Tensor | None
    """`(d_in, d_sae)`: column i belongs to latent i."""
    b_enc: Tensor | None
    """`(d_sae,)`."""
    W_dec: Tensor
    """The dictionary, `(d_sae, d_out)`: row i is the direction that latent i adds per unit of its code."""
    b_dec: Tensor
    """`(d_out,)`: the reconstruction where no latent fires."""


@torch.no_grad()
def raw_weights(sae: "SparseAutoencoder") -> RawWeights:
    r"""Fold standardisation, scales, norms and biases of an SAE into four tensors, computed in float64.

    With $\tilde x = (x - \mu) / s$, pre-codes $v = \tilde x A + a$ and atoms $D$:
    $W_{enc} = A / s$, $b_{enc} = a - \mu A / s$, $W_{dec} = s D$, $b_{dec} = s b + \mu$.

    Args:
        sae: The SAE; its own weights stay as they are.

    Returns:
        Tensors in float32 (float64 where the SAE is).

    Raises:
        ValueError: If the latents of the SAE lie on several processes.
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
        centre = mean / scale + (bias if sae.subtract_decoder_bias else 0)
        w_enc, b_enc = (matrix / scale).T.to(dtype).contiguous(), (offset - matrix @ centre).to(dtype)
    w_dec, b_dec = out_scale * sae.decoder.atoms.double(), out_scale * bias + out_mean
    return RawWeights(w_enc, b_enc, w_dec.to(dtype), b_dec.to(dtype))
