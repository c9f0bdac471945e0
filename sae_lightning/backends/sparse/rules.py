"""Rules of the sparse backend, by the exact type of a part, since a subclass may have another formula.

A rule computes the same as the part's `forward`, but only at some positions of the codes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from sae_lightning.backends.sparse.codes import (
    Pattern,
    SparseCodes,
    SparseOutput,
    affine_at,
    decode_sparse,
    distance_at,
    sparsemax_on,
)
from sae_lightning.backends.sparse.support import above, largest, simplex_support
from sae_lightning.nn.autoencoder import SparseAutoencoder
from sae_lightning.nn.decoder import EPSILON, Decoder
from sae_lightning.nn.encoders import Affine, SquaredDistance
from sae_lightning.nn.functional import at_least_float32, jump, step
from sae_lightning.nn.projections import Jump, KSparse, Orthant, Simplex
from sae_lightning.nn.regularizers import L0, L1, AuxK, DistanceWeightedL1, magnitudes


class Runner(Protocol):
    """What rules of regularizers ask of the backend."""

    core: SparseAutoencoder

    def codes_among(self, x: Tensor, latents: Tensor, k: int) -> SparseCodes:
        """Return the k largest positive pre-codes of each sample among some latents, as codes with gradients."""


# ---------------------------------------------------------------------- encoders


def _affine_at(core: SparseAutoencoder, x: Tensor, pattern: Pattern, values: Tensor) -> Tensor:
    encoder: Any = core.encoder
    return affine_at(x, core.center, encoder.weight, encoder.bias, encoder.pre_code_scale, pattern, values)


def _distance_at(core: SparseAutoencoder, x: Tensor, pattern: Pattern, values: Tensor) -> Tensor:
    encoder: Any = core.encoder
    if core.center is not None:
        x = x - core.center
    return distance_at(x, encoder.weight, encoder.scale, encoder.wide_offset, pattern, values)


ENCODERS: dict[type, Callable[[SparseAutoencoder, Tensor, Pattern, Tensor], Tensor]] = {
    Affine: _affine_at,
    SquaredDistance: _distance_at,
}
"""Functions that attach the encoder's gradient to known pre-codes `(nnz,)` at the positions of a pattern."""

# ---------------------------------------------------------------------- projections


class ProjectionRule(NamedTuple):
    """Functions that compute sparse codes."""

    support: Callable[[Any, Tensor], Pattern]
    """Positions at which codes or gradients may be nonzero, from the projection and pre-codes `(n, d_sae)`."""
    at: Callable[[Any, SparseCodes], Tensor]
    """Codes `(nnz,)` at the positions of the support, from the pre-codes there."""


def _near_threshold(projection: Jump, pre_codes: Tensor) -> Pattern:
    """Return where pre-codes exceed their threshold or are within the kernel's width below it, which trains it."""
    threshold = projection.threshold
    # with a margin for rounding errors
    return above(pre_codes, threshold - projection.bandwidth / 2 - 1e-6 * (threshold + projection.bandwidth))


def _jump_at(projection: Jump, v: SparseCodes) -> Tensor:
    return jump(v.values, projection.threshold.index_select(0, v.pattern.latents), projection.bandwidth)


PROJECTIONS: dict[type, ProjectionRule] = {
    Orthant: ProjectionRule(lambda projection, v: above(v, 0.0), lambda projection, v: v.values),
    Jump: ProjectionRule(_near_threshold, _jump_at),
    KSparse: ProjectionRule(lambda projection, v: largest(v, projection.k), lambda projection, v: v.values),
    Simplex: ProjectionRule(lambda projection, v: simplex_support(v), lambda projection, v: sparsemax_on(v)),
}

# ---------------------------------------------------------------------- decoders


def combine(decoder: Decoder, codes: SparseCodes) -> Tensor:
    """Sum the atoms weighted by the codes, without the bias."""
    return at_least_float32(decode_sparse(codes, decoder.weight, EPSILON if decoder.unit_norm else None))


def _decode(decoder: Decoder, codes: SparseCodes) -> Tensor:
    x_hat = combine(decoder, codes)
    return x_hat if decoder.bias is None else x_hat + decoder.bias


DECODERS: dict[type, Callable[[Any, SparseCodes], Tensor]] = {Decoder: _decode}

# ---------------------------------------------------------------------- regularizers


def _l1(backend: Runner, regularizer: L1, x: Tensor, out: SparseOutput) -> Tensor:
    return out.codes.total(magnitudes(out.codes.values))


def _l0(backend: Runner, regularizer: L0, x: Tensor, out: SparseOutput) -> Tensor:
    projection: Any = backend.core.projection
    v = out.pre_codes
    threshold = projection.threshold.index_select(0, v.pattern.latents)
    return v.total(step(v.values, threshold, projection.bandwidth))


def _distance_weighted(backend: Runner, regularizer: DistanceWeightedL1, x: Tensor, out: SparseOutput) -> Tensor:
    encoder: Any = backend.core.encoder
    z, v, offset = out.codes, out.pre_codes.values, encoder.wide_offset
    if offset is not None:
        v = v - offset.index_select(0, z.pattern.latents)
    paid: Tensor = -z.total(z.values * v) / encoder.scale
    return paid


def _aux_k(backend: Runner, regularizer: AuxK, x: Tensor, out: SparseOutput) -> Tensor:
    core = backend.core
    dead = regularizer.dead(core)
    if len(dead) == 0:
        return torch.zeros_like(x[..., 0])
    codes = backend.codes_among(x, dead, regularizer.n_codes(core, dead))
    return regularizer.error(x, out.x_hat, combine(core.decoder, codes))


REGULARIZERS: dict[type, Callable[[Runner, Any, Tensor, SparseOutput], Tensor]] = {
    L1: _l1,
    L0: _l0,
    DistanceWeightedL1: _distance_weighted,
    AuxK: _aux_k,
}
