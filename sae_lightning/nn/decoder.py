"""The decoder: a linear combination of dictionary atoms."""

import torch
from torch import Tensor, nn

from sae_lightning.nn.functional import at_least_float32, decode
from sae_lightning.nn.parts import Part, require_positive

EPSILON = 1e-6
"""What is added to norms that divide."""


class Decoder(Part, nn.Module):
    r"""Linear decoder: $\hat x = z W + b$, where row i of $W$ is the atom of latent i.

    Args:
        d_out: Size of a reconstruction.
        d_sae: Number of latents.
        bias: Whether to add a bias.
        unit_norm: Whether atoms are divided by their norm (plus 1e-6) in every forward pass.

    Shapes: codes `(..., d_sae)` to reconstructions `(..., d_out)`.

    Raises:
        ValueError: If a size is below 1.
    """

    rows_of_latents = frozenset({"weight"})

    def __init__(self, d_out: int, d_sae: int, bias: bool = True, unit_norm: bool = False) -> None:
        super().__init__()
        require_positive("d_out", d_out)
        require_positive("d_sae", d_sae)
        self.d_out = d_out
        self.d_sae = d_sae
        self.weight = nn.Parameter(torch.zeros(d_sae, d_out))
        self.bias = nn.Parameter(torch.zeros(d_out)) if bias else None
        self.unit_norm = unit_norm

    @property
    def atoms(self) -> Tensor:
        """The dictionary that is used, `(d_sae, d_out)`: the weight, of unit norm where that was asked for."""
        return unit_norm(self.weight) if self.unit_norm else self.weight

    def combine(self, codes: Tensor, latents: Tensor | None = None) -> Tensor:
        """Sum the atoms weighted by the codes, without the bias.

        Args:
            codes: Codes, `(..., d_sae)`.
            latents: Where codes are those of some latents only, `(..., n_latents)`: which ones.
        """
        atoms = self.atoms if latents is None else self.atoms.index_select(0, latents)
        return at_least_float32(decode(codes, atoms))

    def forward(self, codes: Tensor) -> Tensor:
        """Return reconstructions in float32 (or float64), `(..., d_out)`."""
        x_hat = self.combine(codes)
        return x_hat if self.bias is None else x_hat + self.bias


def unit_norm(rows: Tensor) -> Tensor:
    """Rows divided by their norm (plus 1e-6), in their own precision."""
    wide = at_least_float32(rows)
    normed: Tensor = wide / (wide.norm(dim=-1, keepdim=True) + EPSILON)
    return normed.to(rows.dtype)
