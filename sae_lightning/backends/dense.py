"""Backend on dense codes, for any parts and any device."""

from typing import ClassVar

import torch
from torch import Tensor

from sae_lightning.nn.autoencoder import SAEOutput, SparseAutoencoder
from sae_lightning.nn.encoders import Affine, SquaredDistance
from sae_lightning.nn.firing import fires
from sae_lightning.nn.functional import affine, k_sparse, negative_squared_distance
from sae_lightning.nn.regularizers import AuxK, Regularizer


class Dense:
    """Backend that calls the parts of an SAE as they are, on the codes of all latents.

    Base class of the other backends, which override the methods that they speed up. The outputs of `forward_train` and
    `autoencode` differ between backends: pass them only to methods of the backend that returned them.

    Args:
        core: The SAE.
        regularizer: Penalty on its codes, or None.

    Example:
        >>> import torch
        >>> from sae_lightning.backends import Dense
        >>> from sae_lightning.nn import L1, Affine, Decoder, Orthant, SparseAutoencoder
        >>> core = SparseAutoencoder(Affine(2, 2), Orthant(2), Decoder(2, 2))
        >>> _ = torch.nn.init.eye_(core.encoder.weight)
        >>> x = torch.tensor([[3.0, -1.0]])
        >>> backend = Dense(core, L1(2))
        >>> backend.regularize(x, backend.forward_train(x)).tolist()  # the codes are [3, 0]
        [3.0]
    """

    name: ClassVar[str] = "dense"

    def __init__(self, core: SparseAutoencoder, regularizer: Regularizer | None) -> None:
        self.core = core
        self.regularizer = regularizer

    @staticmethod
    def without_rule(core: SparseAutoencoder, regularizer: Regularizer | None) -> list[str]:
        """Return the class names of the parts for which this backend has no rule."""
        return []

    # ------------------------------------------------------------------ a training step

    def forward_train(self, x: Tensor) -> SAEOutput:
        """Encode, project and decode standardized inputs `(n, d_in)`, with gradients."""
        return self.project(self.pre_codes(x), train=True)

    def regularize(self, x: Tensor, out: SAEOutput) -> Tensor:
        """Return the regularizer's penalty per sample, `(n,)`."""
        assert self.regularizer is not None
        if type(self.regularizer) is AuxK and type(self.core.encoder) in _SOME_LATENTS:
            return self._aux_k(self.regularizer, x, out)
        paid: Tensor = self.regularizer(self.core, x, out)
        return paid

    def fired(self, out: SAEOutput) -> Tensor:
        """Return which latents fire on at least one sample of the batch, bool `(d_sae,)`."""
        return self.core.fired(out.codes)

    def count_firing(self, out: SAEOutput) -> Tensor:
        """Return the number of firing codes in the batch, a scalar."""
        return fires(out.codes).sum()

    # ------------------------------------------------------------------ evaluation

    def autoencode(self, x: Tensor) -> SAEOutput:
        """Encode, project and decode standardized inputs `(n, d_in)` for evaluation; `regularize` takes the output."""
        return self.project(self.pre_codes(x))

    def all_latents(self, out: SAEOutput) -> SAEOutput:
        """Convert an output of `autoencode` to dense codes and pre-codes of all latents."""
        return out

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of raw inputs: `(..., d_in)` to `(..., d_sae)`."""
        return self.core.encode(x)

    def decode(self, codes: Tensor) -> Tensor:
        """Return reconstructions of codes in raw units: `(..., d_sae)` to `(..., d_out)`."""
        return self.core.decode(codes)

    # ------------------------------------------------------------------ parts

    def project(self, pre_codes: Tensor, train: bool = False) -> SAEOutput:
        """Project and decode pre-codes `(..., d_sae)`, by the projection's form for training or for inference."""
        projection = self.core.projection
        codes = projection.forward_train(pre_codes) if train else projection(pre_codes)
        return SAEOutput(self.core.decoder(codes), codes, pre_codes)

    def pre_codes(self, x: Tensor) -> Tensor:
        """Return the pre-codes of standardized inputs: `(..., d_in)` to `(..., d_sae)`."""
        core = self.core
        encoder = core.encoder
        if core.center is not None and type(encoder) is Affine and not has_hooks(encoder):
            # this computes the gradient of the center without that of each input, which would cost one more product
            return affine(x, core.center, encoder.weight, encoder.bias, encoder.pre_code_scale)
        return core.pre_codes(x)

    def pre_codes_of(self, x: Tensor, latents: Tensor) -> Tensor:
        """Return the pre-codes of the given latents only, `(n, n_latents)`; works for encoders in `_SOME_LATENTS`."""
        return _SOME_LATENTS[type(self.core.encoder)](self.core, x, latents)

    def _aux_k(self, regularizer: AuxK, x: Tensor, out: SAEOutput) -> Tensor:
        dead = regularizer.dead(self.core)
        if len(dead) == 0:
            return torch.zeros_like(x[..., 0])
        codes = k_sparse(self.pre_codes_of(x, dead), regularizer.n_codes(self.core, dead))
        return regularizer.error(x, out.x_hat, self.core.decoder.combine(codes, dead))


def has_hooks(part: torch.nn.Module) -> bool:
    """Return whether a part has hooks, which may replace its inputs or outputs: it must then be called as a module."""
    return bool(part._forward_hooks or part._forward_pre_hooks)


def _some_affine(core: SparseAutoencoder, x: Tensor, latents: Tensor) -> Tensor:
    encoder = core.encoder
    assert isinstance(encoder, Affine)
    bias = None if encoder.bias is None else encoder.bias.index_select(0, latents)
    return affine(x, core.center, encoder.weight.index_select(0, latents), bias, encoder.pre_code_scale)


def _some_distances(core: SparseAutoencoder, x: Tensor, latents: Tensor) -> Tensor:
    encoder = core.encoder
    assert isinstance(encoder, SquaredDistance)
    if core.center is not None:
        x = x - core.center
    offset = None if encoder.wide_offset is None else encoder.wide_offset.index_select(0, latents)
    return negative_squared_distance(x, encoder.weight.index_select(0, latents), encoder.scale, offset)


_SOME_LATENTS = {Affine: _some_affine, SquaredDistance: _some_distances}
