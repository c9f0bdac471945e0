"""Backend for latents distributed over several processes, each of which sees all samples."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae_lightning.backends.dense import Dense
from sae_lightning.backends.sharded.latents import Sharding, k_sparse_over, sparsemax_over
from sae_lightning.nn.autoencoder import SAEOutput, SparseAutoencoder
from sae_lightning.nn.decoder import Decoder, unit_norm
from sae_lightning.nn.encoders import Affine, SquaredDistance
from sae_lightning.nn.functional import affine, at_least_float32, decode, jump, negative_squared_distance, step
from sae_lightning.nn.parts import Part
from sae_lightning.nn.projections import Jump, KSparse, Orthant, Projection, Simplex
from sae_lightning.nn.regularizers import L0, L1, AuxK, DistanceWeightedL1, Regularizer, magnitudes
from sae_lightning.nn.rows import local


class Sharded(Dense):
    """Backend that runs the formulas on the latents of this process, with collective operations over all latents.

    Parameters are DTensors. `forward_train` and `autoencode` return the codes of this process's latents. `all_latents`
    and `encode` return, and `decode` takes, the codes of all latents.

    Args:
        core: The SAE; all its parts must have rules (`without_rule`).
        regularizer: Penalty on its codes, or None.
        sharding: Distribution of the latents over processes.

    Example:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from sae_lightning.backends.sharded import Sharded, Sharding
        >>> from sae_lightning.nn import Affine, Decoder, Orthant, SparseAutoencoder
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> core = SparseAutoencoder(Affine(2, 4), Orthant(4), Decoder(2, 4))
        >>> Sharded(core, None, Sharding(dist.group.WORLD, d_sae=4)).encode(torch.ones(3, 2)).shape
        torch.Size([3, 4])
        >>> dist.destroy_process_group()
    """

    name: ClassVar[str] = "sharded"

    def __init__(self, core: SparseAutoencoder, regularizer: Regularizer | None, sharding: Sharding) -> None:
        super().__init__(core, regularizer)
        self.sharding = sharding

    @staticmethod
    def without_rule(core: SparseAutoencoder, regularizer: Regularizer | None) -> list[str]:
        """Return the class names of the parts for which this backend has no rule."""
        known: list[tuple[Part, Any]] = [
            (core.encoder, _ENCODERS),
            (core.projection, _PROJECTIONS),
            (core.decoder, {Decoder}),
        ]
        if regularizer is not None:
            known.append((regularizer, _REGULARIZERS))
        return [type(part).__name__ for part, rules in known if type(part) not in rules]

    def pre_codes(self, x: Tensor) -> Tensor:
        """Return the pre-codes of this process's latents, `(n, d_local)`."""
        return self.pre_codes_of(x, None)

    def pre_codes_of(self, x: Tensor, latents: Tensor | None) -> Tensor:
        """Return the pre-codes of the given latents of this process (indices from 0), or of all if None."""
        return _ENCODERS[type(self.core.encoder)](self, self.core.encoder, x, latents)

    def replicate(self, x: Tensor) -> Tensor:
        """Return an encoder's input, with its gradient summed over processes, since each has only its latents' part."""
        return self.sharding.replicate(x) if x.requires_grad else x

    @property
    def center(self) -> Tensor | None:
        """Vector subtracted from the encoder's inputs, or None."""
        return None if self.core.center is None else local(self.core.center)

    def project(self, pre_codes: Tensor, train: bool = False) -> SAEOutput:
        """Project and decode pre-codes of this process's latents, `(n, d_local)`; the rules have no training form."""
        core = self.core
        codes = _PROJECTIONS[type(core.projection)](self.sharding, core.projection, pre_codes)
        return SAEOutput(self._decode(codes), codes, pre_codes)

    def combine(self, codes: Tensor, latents: Tensor | None = None) -> Tensor:
        """Sum the atoms of all processes weighted by their codes, without the bias."""
        rows = local(self.core.decoder.weight)
        atoms = unit_norm(rows) if self.core.decoder.unit_norm else rows
        if latents is not None:
            atoms = atoms.index_select(0, latents)
        return self.sharding.sum(at_least_float32(decode(codes, atoms)))

    def _decode(self, codes: Tensor) -> Tensor:
        x_hat, bias = self.combine(codes), self.core.decoder.bias
        return x_hat if bias is None else x_hat + local(bias)

    def regularize(self, x: Tensor, out: SAEOutput) -> Tensor:
        """Return the regularizer's penalty per sample, `(n,)`."""
        return _REGULARIZERS[type(self.regularizer)](self, self.regularizer, x, out)

    def fired(self, out: SAEOutput) -> Tensor:
        """Return which latents fire in the batch, bool `(d_sae,)`; False for the latents of other processes."""
        return self.sharding.scatter(super().fired(out))

    def count_firing(self, out: SAEOutput) -> Tensor:
        """Return the number of firing codes in the batch over all processes, a scalar."""
        return self.sharding.total(super().count_firing(out))

    def all_latents(self, out: SAEOutput) -> SAEOutput:
        """Return the same output with the codes and pre-codes of all latents."""
        return SAEOutput(out.x_hat, self.sharding.gather(out.codes), self.sharding.gather(out.pre_codes))

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of raw inputs: `(..., d_in)` to `(..., d_sae)`."""
        return self.sharding.gather(self.autoencode(self.core.standardize(x)).codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Return reconstructions of codes in raw units: `(..., d_sae)` to `(..., d_out)`."""
        self.core.check_codes(codes)
        return self.core.destandardize(self._decode(codes[..., self.sharding.own]))


# ---------------------------------------------------------------------- rules, by the exact type of a part


def _rows(parameter: Tensor, latents: Tensor | None) -> Tensor:
    own = local(parameter)
    return own if latents is None else own.index_select(0, latents)


def _affine(backend: Sharded, encoder: Affine, x: Tensor, latents: Tensor | None) -> Tensor:
    center = None if backend.center is None else backend.replicate(backend.center)
    bias = None if encoder.bias is None else _rows(encoder.bias, latents)
    return affine(backend.replicate(x), center, _rows(encoder.weight, latents), bias, encoder.pre_code_scale)


def _distances(backend: Sharded, encoder: SquaredDistance, x: Tensor, latents: Tensor | None) -> Tensor:
    x = backend.replicate(x if backend.center is None else x - backend.center)
    offset = None if encoder.offset is None else at_least_float32(_rows(encoder.offset, latents))
    scale = backend.sharding.replicate(encoder.scale)
    return negative_squared_distance(x, _rows(encoder.weight, latents), scale, offset)


_ENCODERS: dict[type, Callable[[Sharded, Any, Tensor, Tensor | None], Tensor]] = {
    Affine: _affine,
    SquaredDistance: _distances,
}


def _threshold(projection: Jump) -> Tensor:
    return at_least_float32(local(projection.log_threshold)).exp()


_PROJECTIONS: dict[type[Projection], Callable[[Sharding, Any, Tensor], Tensor]] = {
    Orthant: lambda sharding, projection, v: projection(v),
    Jump: lambda sharding, projection, v: jump(v, _threshold(projection), projection.bandwidth),
    KSparse: lambda sharding, projection, v: k_sparse_over(at_least_float32(v), projection.k, sharding),
    Simplex: lambda sharding, projection, v: sparsemax_over(at_least_float32(v), sharding),
}


def _l1(backend: Sharded, regularizer: L1, x: Tensor, out: SAEOutput) -> Tensor:
    return backend.sharding.sum(magnitudes(out.codes).sum(-1))


def _l0(backend: Sharded, regularizer: L0, x: Tensor, out: SAEOutput) -> Tensor:
    projection: Any = backend.core.projection
    return backend.sharding.sum(step(out.pre_codes, _threshold(projection), projection.bandwidth).sum(-1))


def _distance_weighted(backend: Sharded, regularizer: DistanceWeightedL1, x: Tensor, out: SAEOutput) -> Tensor:
    encoder: Any = backend.core.encoder
    v = out.pre_codes
    if encoder.offset is not None:
        v = v - at_least_float32(local(encoder.offset))
    paid: Tensor = -backend.sharding.sum((out.codes * v).sum(-1)) / encoder.scale
    return paid


def _aux_k(backend: Sharded, regularizer: AuxK, x: Tensor, out: SAEOutput) -> Tensor:
    sharding = backend.sharding
    dead = regularizer.dead(backend.core)
    if len(dead) == 0:
        return torch.zeros_like(x[..., 0])
    k = regularizer.n_codes(backend.core, dead)
    own, most = sharding.among_own(dead), sharding.most_on_one(dead)
    codes = k_sparse_over(backend.pre_codes_of(x, own), k, sharding, min(k, most))
    return regularizer.error(x, out.x_hat, backend.combine(codes, own))


_REGULARIZERS: dict[type, Callable[[Sharded, Any, Tensor, SAEOutput], Tensor]] = {
    L1: _l1,
    L0: _l0,
    DistanceWeightedL1: _distance_weighted,
    AuxK: _aux_k,
}
