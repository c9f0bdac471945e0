"""The decoder: a linear combination of dictionary atoms."""

import torch
from torch import Tensor, nn

from sae_lightning.nn.functional import at_least_float32, decode
from sae_lightning.nn.parts import Part, require_positive
from sae_lightning.nn.sharding import local
from sae_lightning.nn.sparse import SparseCodes, decode_sparse

_EPSILON = 1e-6  # added to norms that divide


class Decoder(Part, nn.Module):
    r"""Linear decoder: $\hat x = z W + b$, where row i of $W$ is the atom of latent i.

    Args:
        d_in: Size of a reconstruction.
        d_sae: Number of latents.
        bias: Whether to add a bias.
        unit_norm: Whether atoms are divided by their norm (plus 1e-6) in every forward pass.

    Shapes: codes `(..., d_sae)` to reconstructions `(..., d_in)`.

    Raises:
        ValueError: If a size is below 1.
    """

    sparse = True
    rows_of_latents = frozenset({"weight"})
    resamplable = True
    dense_form = frozenset({"forward", "combine", "atoms"})

    def __init__(self, d_in: int, d_sae: int, bias: bool = True, unit_norm: bool = False) -> None:
        super().__init__()
        require_positive("d_in", d_in)
        require_positive("d_sae", d_sae)
        self.weight = nn.Parameter(torch.zeros(d_sae, d_in))
        self.bias = nn.Parameter(torch.zeros(d_in)) if bias else None
        self.unit_norm = unit_norm

    @property
    def atoms(self) -> Tensor:
        """The dictionary that is used, `(d_sae, d_in)`: the weight, of unit norm where that was asked for.

        Where latents are sharded, the atoms of this process's own.
        """
        weight = local(self.weight)
        if not self.unit_norm:
            return weight
        wide = at_least_float32(weight)
        normed: Tensor = wide / (wide.norm(dim=-1, keepdim=True) + _EPSILON)
        return normed.to(weight.dtype)

    def combine(self, codes: Tensor | SparseCodes, latents: Tensor | None = None) -> Tensor:
        """Sum the atoms weighted by the codes, without the bias.

        Args:
            codes: Sparse codes, or dense ones `(..., d_sae)`.
            latents: Where dense codes are those of some latents only, `(..., n_latents)`: which ones.
        """
        if isinstance(codes, SparseCodes):
            return at_least_float32(decode_sparse(codes, self.weight, _EPSILON if self.unit_norm else None))
        atoms = self.atoms if latents is None else self.atoms.index_select(0, latents)
        x_hat = at_least_float32(decode(codes, atoms))
        return x_hat if self.sharding is None else self.sharding.sum(x_hat)

    def forward(self, codes: Tensor | SparseCodes) -> Tensor:
        """Return reconstructions in float32 (or float64), `(..., d_in)`."""
        x_hat = self.combine(codes)
        return x_hat if self.bias is None else x_hat + local(self.bias)
