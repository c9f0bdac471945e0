"""The backend that works on dense codes, for any parts and on any device."""

from typing import ClassVar

import torch
from torch import Tensor

from sae_lightning.nn.autoencoder import SAEOutput, SparseAutoencoder
from sae_lightning.nn.encoders import Affine, SquaredDistance
from sae_lightning.nn.firing import fires
from sae_lightning.nn.functional import affine, k_sparse, negative_squared_distance
from sae_lightning.nn.regularizers import AuxK, Regularizer


class Dense:
    """Runs an SAE as its parts are written: the products, projections and losses of all latents.

    The other backends derive from it and replace what they do in another way. What they return in `out` is their own
    affair; `regularize`, `fired` and `count_firing` take it.

    Args:
        core: The SAE.
        regularizer: What its codes cost, or None.
    """

    name: ClassVar[str] = "dense"

    def __init__(self, core: SparseAutoencoder, regularizer: Regularizer | None) -> None:
        self.core = core
        self.regularizer = regularizer

    @staticmethod
    def without_rule(core: SparseAutoencoder, regularizer: Regularizer | None) -> list[str]:
        """Names of the classes among the parts for which this backend has no rule."""
        return []

    # ------------------------------------------------------------------ a training step

    def forward_train(self, x: Tensor) -> SAEOutput:
        """Encode, project and decode standardised inputs `(n, d_in)`, such that gradients can be found."""
        return self.project(self.pre_codes(x), train=True)

    def regularize(self, x: Tensor, out: SAEOutput) -> Tensor:
        """What each sample pays, `(n,)`."""
        assert self.regularizer is not None
        if type(self.regularizer) is AuxK and type(self.core.encoder) in _SOME_LATENTS:
            return self._aux_k(self.regularizer, x, out)
        paid: Tensor = self.regularizer(self.core, x, out)
        return paid

    def fired(self, out: SAEOutput) -> Tensor:
        """Which latents fire anywhere in the batch, bool `(d_sae,)`."""
        return self.core.fired(out.codes)

    def count_firing(self, out: SAEOutput) -> Tensor:
        """Number of codes that fire in the batch, a scalar."""
        return fires(out.codes).sum()

    # ------------------------------------------------------------------ evaluation

    def autoencode(self, x: Tensor) -> SAEOutput:
        """Outputs for standardised inputs, in which codes and pre-codes are those that `regularize` takes."""
        return self.project(self.pre_codes(x))

    def all_latents(self, out: SAEOutput) -> SAEOutput:
        """An output of `autoencode` with the codes and pre-codes of all latents."""
        return out

    def encode(self, x: Tensor) -> Tensor:
        """Codes of raw inputs, `(..., d_in)` to `(..., d_sae)`."""
        return self.core.encode(x)

    def decode(self, codes: Tensor) -> Tensor:
        """Reconstructions in raw units, `(..., d_sae)` to `(..., d_in)`."""
        return self.core.decode(codes)

    # ------------------------------------------------------------------ parts

    def project(self, pre_codes: Tensor, train: bool = False) -> SAEOutput:
        """The output that belongs to pre-codes, in the projection's form for training or inference."""
        projection = self.core.projection
        codes = projection.forward_train(pre_codes) if train else projection(pre_codes)
        return SAEOutput(self.core.decoder(codes), codes, pre_codes)

    def pre_codes(self, x: Tensor) -> Tensor:
        """Pre-codes of standardised inputs."""
        core = self.core
        encoder = core.encoder
        if core.centre is not None and type(encoder) is Affine and not has_hooks(encoder):
            # the centre's gradient without that of every input, which is a product of its own
            return affine(x, core.centre, encoder.weight, encoder.bias, encoder.pre_code_scale)
        return core.pre_codes(x)

    def pre_codes_of(self, x: Tensor, latents: Tensor) -> Tensor:
        """Pre-codes of some latents only, `(n, n_latents)`, for encoders with a rule."""
        return _SOME_LATENTS[type(self.core.encoder)](self.core, x, latents)

    def _aux_k(self, regularizer: AuxK, x: Tensor, out: SAEOutput) -> Tensor:
        dead = regularizer.dead(self.core)
        if len(dead) == 0:
            return torch.zeros_like(x[..., 0])
        codes = k_sparse(self.pre_codes_of(x, dead), regularizer.n_codes(self.core, dead))
        return regularizer.error(x, out.x_hat, self.core.decoder.combine(codes, dead))


def has_hooks(part: torch.nn.Module) -> bool:
    """Whether a part must be called as a module: a hook may replace what it takes or returns."""
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _some_affine(core: SparseAutoencoder, x: Tensor, latents: Tensor) -> Tensor:
    encoder = core.encoder
    assert isinstance(encoder, Affine)
    bias = None if encoder.bias is None else encoder.bias.index_select(0, latents)
    return affine(x, core.centre, encoder.weight.index_select(0, latents), bias, encoder.pre_code_scale)


def _some_distances(core: SparseAutoencoder, x: Tensor, latents: Tensor) -> Tensor:
    encoder = core.encoder
    assert isinstance(encoder, SquaredDistance)
    if core.centre is not None:
        x = x - core.centre
    offset = None if encoder.wide_offset is None else encoder.wide_offset.index_select(0, latents)
    return negative_squared_distance(x, encoder.weight.index_select(0, latents), encoder.scale, offset)


_SOME_LATENTS = {Affine: _some_affine, SquaredDistance: _some_distances}
