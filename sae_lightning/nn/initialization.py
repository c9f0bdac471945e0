"""Initial values of an SAE's weights: random, or taken from data."""

from typing import Literal

import torch
from torch import Tensor

from sae_lightning.nn.autoencoder import SparseAutoencoder
from sae_lightning.nn.rows import fill_rows

Initialization = Literal["data", "unit", "normal"]
"""Rows of both matrices: random data points, random unit vectors, or independent standard normals."""


def new_generator() -> torch.Generator:
    """A generator seeded by the program's seed, whatever has been drawn from the global generator since.

    Two SAEs that are built in one program (alone or as members of a Comparison) so start from the same draw.
    """
    return torch.Generator().manual_seed(torch.initial_seed())


@torch.no_grad()
def initialize_weights(sae: SparseAutoencoder, how: Literal["unit", "normal"], generator: torch.Generator) -> None:
    """Fill the encoder with random rows and the decoder with a copy of them; biases stay as they are.

    A decoder of another space than the encoder's (targets) gets rows of its own.

    Args:
        sae: The SAE to initialise.
        how: Random unit vectors, or independent standard normals (the authors' choice).
        generator: Source of randomness, on the CPU.
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
    """Put prototypes and atoms at random data points (for an affine encoder: in their directions).

    Where there are fewer samples than latents, points are drawn again and moved by a thousandth of the data's
    scale, so that no two latents are equal.

    Args:
        sae: The SAE to initialise.
        x: Standardised samples, `(n, d_in)`, n >= 1.
        generator: Source of randomness, on the CPU.
        target: Standardized targets of the samples, `(n, d_out)`, from which atoms are taken where an SAE has some.
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
