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

    Args:
        sae: The SAE to initialise.
        how: Random unit vectors, or independent standard normals (the authors' choice).
        generator: Source of randomness, on the CPU.
    """
    rows = torch.randn(sae.d_sae, sae.d_in, generator=generator)
    if how == "unit":
        rows /= rows.norm(dim=-1, keepdim=True)
    fill_rows(sae.encoder.weight, rows)
    fill_rows(sae.decoder.weight, rows)


@torch.no_grad()
def initialize_from_data(sae: SparseAutoencoder, x: Tensor, generator: torch.Generator) -> None:
    """Put prototypes and atoms at random data points (for an affine encoder: in their directions).

    Where there are fewer samples than latents, points are drawn again and moved by a thousandth of the data's
    scale, so that no two latents are equal.

    Args:
        sae: The SAE to initialise.
        x: Standardised samples, `(n, d_in)`, n >= 1.
        generator: Source of randomness, on the CPU.
    """
    chosen = torch.randperm(len(x), generator=generator)
    if len(x) < sae.d_sae:
        chosen = torch.cat([chosen, torch.randint(len(x), (sae.d_sae - len(x),), generator=generator)])
    rows = x[chosen[: sae.d_sae].to(x.device)].float()
    if len(x) < sae.d_sae:
        noise = torch.randn(rows.shape, generator=generator).to(rows)
        rows = rows + 1e-3 * rows.square().mean().sqrt() * noise
    if sae.encoder.rows_are == "directions":
        rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    fill_rows(sae.encoder.weight, rows)
    fill_rows(sae.decoder.weight, rows)
