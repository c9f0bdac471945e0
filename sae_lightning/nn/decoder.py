"""The decoder: a linear combination of dictionary atoms."""

import torch
from torch import Tensor, nn

from sae_lightning.nn.functional import at_least_float32, decode
from sae_lightning.nn.parts import Part, require_positive

EPSILON = 1e-6
"""Added to norms before dividing by them."""


class Decoder(Part, nn.Module):
    r"""Linear decoder: $\hat x = z W + b$, where row i of $W$ is the atom of latent i.

    Args:
        d_out: Size of a reconstruction.
        d_sae: Number of latents.
        bias: Whether to add a bias.
        unit_norm: Whether to divide atoms by their norm (plus 1e-6) in every forward pass.

    Shape:
        Codes `(..., d_sae)`, reconstructions `(..., d_out)`.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Decoder
        >>> decoder = Decoder(2, 2)
        >>> _ = torch.nn.init.eye_(decoder.weight)
        >>> _ = torch.nn.init.ones_(decoder.bias)
        >>> decoder(torch.tensor([3.0, 0.0])).tolist()
        [4.0, 1.0]
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
        """Dictionary `(d_sae, d_out)`: the weight, with rows of unit norm if `unit_norm`."""
        return unit_norm(self.weight) if self.unit_norm else self.weight

    def combine(self, codes: Tensor, latents: Tensor | None = None) -> Tensor:
        """Sum the atoms weighted by the codes, without the bias.

        Args:
            codes: Codes, `(..., d_sae)`, or `(..., n_latents)` if `latents` is given.
            latents: Latents that the codes belong to, int64 `(n_latents,)`; None for all.

        Returns:
            Sums, `(..., d_in)`, in float32 or float64.
        """
        atoms = self.atoms if latents is None else self.atoms.index_select(0, latents)
        return at_least_float32(decode(codes, atoms))

    def forward(self, codes: Tensor) -> Tensor:
        """Map codes `(..., d_sae)` to reconstructions `(..., d_out)`, in float32 or float64."""
        x_hat = self.combine(codes)
        return x_hat if self.bias is None else x_hat + self.bias


def unit_norm(rows: Tensor) -> Tensor:
    """Divide rows by their norm (plus 1e-6), in at least float32, and return them in their own dtype."""
    wide = at_least_float32(rows)
    normed: Tensor = wide / (wide.norm(dim=-1, keepdim=True) + EPSILON)
    return normed.to(rows.dtype)
