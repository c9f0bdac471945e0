"""Initial weights of an SAE: random, or taken from data."""

from typing import Literal

import torch
from torch import Tensor

from sae_lightning.nn.autoencoder import SparseAutoencoder
from sae_lightning.nn.rows import fill_rows

Initialization = Literal["data", "unit", "normal"]
"""Initial rows of encoder and decoder: random data points, random unit vectors, or standard normal entries."""


def new_generator() -> torch.Generator:
    """Return a generator with the seed of torch's global generator, but not its current state.

    So all SAEs built in one program, alone or as members of a Comparison, start from the same random numbers.

    Example:
        >>> import torch
        >>> from sae_lightning.nn.initialization import new_generator
        >>> torch.equal(torch.rand(3, generator=new_generator()), torch.rand(3, generator=new_generator()))
        True
    """
    return torch.Generator().manual_seed(torch.initial_seed())


@torch.no_grad()
def initialize_weights(sae: SparseAutoencoder, how: Literal["unit", "normal"], generator: torch.Generator) -> None:
    """Fill the rows of encoder and decoder with the same random numbers; biases stay as they are.

    A decoder of another space than the encoder's (targets) gets rows of its own.

    Args:
        sae: The SAE to initialize.
        how: `unit` for random unit vectors, `normal` for standard normal entries (the authors' choice).
        generator: Source of randomness, on the CPU.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Affine, Decoder, Orthant, SparseAutoencoder
        >>> from sae_lightning.nn.initialization import initialize_weights
        >>> sae = SparseAutoencoder(Affine(4, 2), Orthant(2), Decoder(4, 2))
        >>> initialize_weights(sae, "unit", torch.Generator().manual_seed(0))
        >>> [round(norm, 4) for norm in sae.encoder.weight.norm(dim=1).tolist()]
        [1.0, 1.0]
    """

    def drawn(size: int) -> Tensor:
        rows = torch.randn(sae.d_sae, size, generator=generator)
        return rows / rows.norm(dim=-1, keepdim=True) if how == "unit" else rows

    rows = drawn(sae.d_in)
    fill_rows(sae.encoder.weight, rows)
    fill_rows(sae.decoder.weight, rows if sae.target_standardizer is None else drawn(sae.d_out))


@torch.no_grad()
def initialize_from_data(
    sae: SparseAutoencoder, x: Tensor, generator: torch.Generator, target: Tensor | None = None
) -> None:
    """Set the rows of encoder and decoder to random data points, or to their directions for an affine encoder.

    If there are fewer samples than latents, some are drawn several times, and noise of a thousandth of the data's scale
    keeps latents distinct.

    Args:
        sae: The SAE to initialize.
        x: Standardized samples, `(n, d_in)`, n >= 1.
        generator: Source of randomness, on the CPU.
        target: Standardized targets of the samples, `(n, d_out)`, from which atoms are taken where an SAE has some.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Decoder, Simplex, SparseAutoencoder, SquaredDistance
        >>> from sae_lightning.nn.initialization import initialize_from_data
        >>> sae = SparseAutoencoder(SquaredDistance(2, 3), Simplex(3), Decoder(2, 3))
        >>> initialize_from_data(sae, torch.tensor([[3.0, 4.0]]).expand(5, 2), torch.Generator().manual_seed(0))
        >>> sae.encoder.weight.tolist()
        [[3.0, 4.0], [3.0, 4.0], [3.0, 4.0]]
    """
    chosen = torch.randperm(len(x), generator=generator)
    if len(x) < sae.d_sae:
        chosen = torch.cat([chosen, torch.randint(len(x), (sae.d_sae - len(x),), generator=generator)])

    def taken(samples: Tensor) -> Tensor:
        rows = samples[chosen[: sae.d_sae].to(x.device)].float()
        if len(x) < sae.d_sae:
            noise = torch.randn(rows.shape, generator=generator).to(rows)
            rows = rows + 1e-3 * rows.square().mean().sqrt() * noise
        if sae.encoder.rows_are == "directions":
            rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return rows

    rows = taken(x)
    fill_rows(sae.encoder.weight, rows)
    fill_rows(sae.decoder.weight, rows if target is None else taken(target))
