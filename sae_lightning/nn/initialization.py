"""Initial values of an SAE's weights: random, or taken from data."""

import math
from typing import Literal

import torch
from torch import Tensor

from sae_lightning.nn.autoencoder import SparseAutoencoder
from sae_lightning.nn.encoders import SquaredDistance
from sae_lightning.nn.firing import fires
from sae_lightning.nn.functional import negative_squared_distance
from sae_lightning.nn.sharding import Sharding, fill, local

Initialization = Literal["data", "unit", "normal"]
"""Rows of both matrices: random data points, random unit vectors, or independent standard normals."""

_CALIBRATION_SAMPLES = 512


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
    fill(sae.encoder.weight, rows)
    fill(sae.decoder.weight, rows)


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
    if not isinstance(sae.encoder, SquaredDistance):
        rows = rows / rows.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    fill(sae.encoder.weight, rows)
    fill(sae.decoder.weight, rows)


@torch.no_grad()
def calibrate_lambda(sae: SparseAutoencoder, x: Tensor, l0: float) -> float:
    """Set lambda of a distance encoder so that the mean L0 on a batch is `l0`, by bisection.

    On the simplex lambda sets how far below its best rival's a latent's pre-code may lie. With the other projections,
    whose encoder has offsets, it sets the radius of the balls in which latents fire. The k-sparse projection would hide
    all but k of them, so that positive pre-codes are counted there, of which it takes the k largest.

    Args:
        sae: An SAE with the encoder SquaredDistance.
        x: Standardised samples, `(n, d_in)`; the first 512 are used.
        l0: Wanted mean number of firing latents per sample, between 1 and `d_sae`.

    Returns:
        The mean L0 that was reached. (It jumps where several latents enter the support at once.)

    Raises:
        ValueError: If the encoder has no lambda, `l0` lies outside 1 and `d_sae`, or offsets are so low that fewer
            latents fire, however small lambda is.
    """
    encoder = sae.encoder
    if not isinstance(encoder, SquaredDistance):
        raise ValueError(f"l0_init needs the encoder SquaredDistance, but got {type(encoder).__name__}")
    if not 1 <= l0 <= sae.d_sae:
        raise ValueError(f"l0_init must lie between 1 and d_sae = {sae.d_sae}, but is {l0}")
    # not from pre-codes: an offset far above the distances would leave little of them
    distances = (
        -negative_squared_distance(x[:_CALIBRATION_SAMPLES], local(encoder.weight), encoder.scale) / encoder.scale
    )
    offset = 0.0 if encoder.offset is None else local(encoder.offset)

    def mean_l0(scale: float) -> float:
        pre_codes = offset - distances * scale
        codes = pre_codes.clamp_min(0) if sae.projection.l0 is not None else sae.projection(pre_codes)
        firing = fires(codes).sum(-1).double()
        return float((firing if sae.sharding is None else sae.sharding.total(firing)).mean())

    # the useful range of lambda is around one over the spread of a sample's distances, at any scale of the data
    unit = 1.0 / max(_spread(distances, sae.sharding).mean().item(), 1e-30)
    low, high = math.log(unit) - 20.0, math.log(unit) + 20.0
    if encoder.offset is not None and mean_l0(0.0) < l0:
        got = f"offset_init = {encoder.offset_init} with {type(sae.projection).__name__}"
        raise ValueError(f"l0_init = {l0} needs offsets high enough for so many latents to fire, but got {got}")
    for _ in range(50):
        middle = (low + high) / 2
        if mean_l0(math.exp(middle)) > l0:
            low = middle
        else:
            high = middle
    encoder.set_lambda(math.exp(high))
    return mean_l0(math.exp(high))


def _spread(distances: Tensor, sharding: Sharding | None) -> Tensor:
    """Standard deviation of each row over all latents, `(n,)`."""
    if sharding is None:
        return distances.std(-1, correction=0)
    mean = sharding.total(distances.sum(-1, keepdim=True)) / sharding.d_sae
    return (sharding.total((distances - mean).square().sum(-1)) / sharding.d_sae).sqrt()
