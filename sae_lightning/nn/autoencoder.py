"""The sparse autoencoder: encoder, projection and decoder as one torch module."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sae_lightning.nn.decoder import Decoder
from sae_lightning.nn.encoders import Encoder
from sae_lightning.nn.firing import fires
from sae_lightning.nn.functional import at_least_float32
from sae_lightning.nn.parts import require_positive, require_shardable
from sae_lightning.nn.projections import Projection
from sae_lightning.nn.receptive_fields import ReceptiveField
from sae_lightning.nn.sharding import Sharding, local
from sae_lightning.nn.sparse import Pattern, SparseCodes
from sae_lightning.nn.standardizer import Standardizer
from sae_lightning.nn.support import largest

# Measured on a CPU (tests/benchmarks): where sparse codes begin to cost more than dense products
_SPARSE_BELOW = 0.12  # as a share of d_sae
_LEAST_WORK = 2**23  # multiplications of the encoder's product
_DENSITY_SAMPLES = 64


class SAEOutput(NamedTuple):
    """What a forward pass returns."""

    x_hat: Tensor
    """Reconstructions, `(..., d_in)`."""
    codes: Tensor
    """Sparse codes, `(..., d_sae)`."""
    pre_codes: Tensor
    """Pre-codes, before the projection, `(..., d_sae)`."""


class SparseOutput(NamedTuple):
    """What a training step works on where codes are sparse."""

    x_hat: Tensor
    """Reconstructions, `(n, d_in)`."""
    codes: SparseCodes
    """Codes at the positions that the projection found."""
    pre_codes: SparseCodes
    """Pre-codes at the same positions."""


class SparseAutoencoder(nn.Module):
    r"""A sparse autoencoder, as a projection of encoded inputs onto a set of sparse codes.

    $$ v = \mathrm{encoder}(\tilde x), \qquad z = \Pi_S(v), \qquad \hat x = z W_{dec} + b_{dec} $$

    `forward`, `encode` and `decode` speak raw units and any leading shape, with `forward == decode(encode(x))`;
    `autoencode` is the same between standardised units, where losses are computed, and `autoencode_sparsely` the same
    on sparse codes, where only the encoder's forward product costs O(n * d_sae * d_in).

    Products follow autocast or the precision of the two matrices; everything else stays in at least float32, also where
    the module is converted to half precision (docs/precision.md).

    Args:
        encoder: Maps standardised inputs to pre-codes.
        projection: Maps pre-codes to codes.
        decoder: Maps codes to standardised reconstructions.
        standardize: Whether inputs are standardised.
        subtract_decoder_bias: Whether the encoder sees `x - b_dec` instead of `x`.
        chunk_size: Samples whose dense pre-codes are held at a time in a training step, at least 1; bounds its memory,
            whatever the density. None holds those of the whole batch.
        dense_above: Codes per sample, at least 1, above which training uses dense products; None takes the share of
            `d_sae` at which they were measured to become faster.

    Raises:
        ValueError: If the parts do not fit each other or a number is out of range.

    Source: Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822.
    """

    batches_silent: Tensor

    def __init__(
        self,
        encoder: Encoder,
        projection: Projection,
        decoder: Decoder,
        standardize: bool = True,
        subtract_decoder_bias: bool = False,
        chunk_size: int | None = None,
        dense_above: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"chunk_size": chunk_size, "dense_above": dense_above}.items():
            if value is not None:
                require_positive(name, value)
        for part in (encoder, projection, decoder):
            if chunk_size is not None and not part.sparse:
                raise ValueError(
                    f"chunk_size must be None where a part has no sparse form, as {type(part).__name__} has not"
                )
        if projection.d_sae != encoder.d_sae or decoder.weight.shape != encoder.weight.shape:
            raise ValueError(
                f"encoder, projection and decoder must agree on d_in and d_sae, but they are for "
                f"{tuple(encoder.weight.shape)}, ({projection.d_sae},) and {tuple(decoder.weight.shape)}"
            )
        if encoder.nonpositive and not projection.shift_invariant:
            raise ValueError(
                f"{type(encoder).__name__} gives pre-codes that are never positive, so that "
                f"{type(projection).__name__} would give zeros only: use Simplex with it, or offsets (offset_init)"
            )
        if subtract_decoder_bias and decoder.bias is None:
            raise ValueError("subtract_decoder_bias needs a decoder with a bias (decoder_bias=True)")
        self.d_in = encoder.d_in
        self.d_sae = encoder.d_sae
        self.standardizer = Standardizer(self.d_in, standardize)
        self.encoder = encoder
        self.projection = projection
        self.decoder = decoder
        self.subtract_decoder_bias = subtract_decoder_bias
        self.chunk_size = None if chunk_size is None else int(chunk_size)
        self.dense_above = dense_above
        self.sharding: Sharding | None = None
        self.register_buffer("batches_silent", torch.zeros(self.d_sae, dtype=torch.int64))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move and convert, but keep everything except matrices from half precision, at which it would be ruined."""

        def convert(tensor: Tensor) -> Tensor:
            converted = fn(tensor)
            if tensor.ndim < 2 and tensor.is_floating_point() and converted.itemsize < 4:
                return tensor.to(converted.device)
            return converted

        return super()._apply(convert, recurse)  # type: ignore[no-untyped-call]

    def shard(self, sharding: Sharding) -> None:
        """Take it that parameters are DTensors whose rows of latents lie on several processes, as `sharding` says.

        `forward`, `encode` and `decode` return and take the codes of all latents as before; `autoencode` and what works
        on its output see those of this process's own. Training is dense.

        Raises:
            ValueError: If a part cannot be sharded or `chunk_size` is given.
        """
        require_shardable(self.encoder, self.projection, self.decoder)
        if self.chunk_size is not None:
            raise ValueError(f"chunk_size must be None where latents are sharded, but is {self.chunk_size}")
        self.sharding = self.encoder.sharding = self.projection.sharding = self.decoder.sharding = sharding

    def autoencode(self, x: Tensor) -> SAEOutput:
        """Run encoder, projection and decoder on standardised inputs; `x_hat` is standardised too."""
        return self._project(self.pre_codes(x))

    def _project(self, pre_codes: Tensor) -> SAEOutput:
        codes = self.projection(pre_codes)
        return SAEOutput(self.decoder(codes), codes, pre_codes)

    def autoencode_cheaply(self, x: Tensor) -> SAEOutput | SparseOutput:
        """Do what `autoencode` does for a training batch, on sparse codes where these are cheaper.

        The density of the codes decides, counted in a few samples of the batch, so that the way depends on nothing
        else. Accelerators always take the dense way (unless `chunk_size` is given): there the counting would stall.

        Args:
            x: Standardised inputs, `(n, d_in)`.
        """
        if not self._may_be_sparse(x):
            return self.autoencode(x)
        limit = _SPARSE_BELOW * self.d_sae if self.dense_above is None else self.dense_above
        if self.chunk_size is not None:
            return self.autoencode_sparsely(x)
        if self.projection.l0 is not None:
            return self.autoencode_sparsely(x) if self.projection.l0 <= limit else self.autoencode(x)
        pre_codes = self.pre_codes(x)  # both ways need them: without a gradient of their own, or with one
        values = pre_codes.detach()
        few = values[: min(_DENSITY_SAMPLES, -(-len(x) // 16))]
        with torch.no_grad():
            if len(self.projection.support(few)) <= limit * len(few):
                pattern = self.projection.support(values)
                del pre_codes
            else:
                pattern = None
        if pattern is None:
            return self._project(pre_codes)
        return self._autoencode_at(x, pattern, pattern.of(values))

    def _may_be_sparse(self, x: Tensor) -> bool:
        parts = (self.encoder, self.projection, self.decoder)
        if self.sharding is not None or not all(part.sparse for part in parts):
            return False
        if any(part._forward_hooks or part._forward_pre_hooks for part in (self.encoder, self.projection)):
            return False  # the sparse way does not call the parts as modules
        if self.chunk_size is not None:
            return True
        return x.device.type == "cpu" and x.ndim == 2 and x.numel() * self.d_sae >= _LEAST_WORK

    def autoencode_sparsely(self, x: Tensor) -> SparseOutput:
        """Do what `autoencode` does, on codes that hold their nonzeros only, forward and backward.

        Args:
            x: Standardised inputs, `(n, d_in)`.

        Raises:
            NotImplementedError: If a part has no sparse form (its `sparse` is False).
        """
        inputs, centre = self._encoder_input(x)

        def of_chunk(part: Tensor) -> SparseCodes:
            dense = at_least_float32(self.encoder(part, **centre))
            pattern = self.projection.support(dense)
            return SparseCodes(pattern.of(dense), pattern)

        with torch.no_grad():
            pattern, found = self._by_chunk(inputs, of_chunk)
        return self._autoencode_at(x, pattern, found)

    def _autoencode_at(self, x: Tensor, pattern: Pattern, found: Tensor) -> SparseOutput:
        """The output from the pre-codes that were found in the support of the codes."""
        x, centre = self._encoder_input(x)
        pre_codes = self.encoder.at(x, pattern, found, **centre)
        codes = SparseCodes(self.projection.at(pre_codes, pattern), pattern)
        return SparseOutput(self.decoder(codes), codes, SparseCodes(pre_codes, pattern))

    def _by_chunk(self, x: Tensor, of_chunk: Callable[[Tensor], SparseCodes]) -> tuple[Pattern, Tensor]:
        """What a function finds in each chunk of the inputs, as one."""
        # Found positions that stay where they were made would split the memory that the chunk's dense pre-codes leave,
        # so that the next chunk's do not fit in there and memory grows with the batch: they move to arrays made before.
        positions = torch.empty(0, dtype=torch.int64, device=x.device)
        values = torch.empty(0, device=x.device)
        n = end = 0
        for part in torch.split(x, self.chunk_size or max(1, len(x))):
            codes = of_chunk(part)
            if end + len(codes.values) > len(positions) or values.dtype != codes.values.dtype:
                room = max(2 * end, -(-len(x) // max(1, len(part))) * len(codes.values), end + len(codes.values))
                positions = torch.cat([positions[:end], positions.new_empty(room - end)])
                values = torch.cat([values[:end].to(codes.values.dtype), codes.values.new_empty(room - end)])
            begin, end = end, end + len(codes.values)
            torch.add(codes.pattern.positions, n * self.d_sae, out=positions[begin:end])
            values[begin:end] = codes.values
            n += len(part)
            del codes
        return Pattern(positions[:end], n, self.d_sae), values[:end]

    def codes_among(self, x: Tensor, latents: Tensor, k: int) -> SparseCodes:
        """The k largest positive pre-codes of each sample among some latents, as codes with their gradient.

        Args:
            x: Standardised inputs, `(n, d_in)`.
            latents: Which latents, rising, int64 `(n_latents,)`.
            k: How many, from 1 to `n_latents`.
        """
        x, centre = self._encoder_input(x)

        def of_chunk(part: Tensor) -> SparseCodes:
            dense = at_least_float32(self.encoder.among(part, latents, **centre))
            chosen = largest(dense, k)
            positions = chosen.samples * self.d_sae + latents.index_select(0, chosen.latents)
            return SparseCodes(chosen.of(dense), Pattern(positions, len(part), self.d_sae))

        with torch.no_grad():
            pattern, found = self._by_chunk(x, of_chunk)
        return SparseCodes(self.encoder.at(x, pattern, found, **centre), pattern)

    def pre_codes_among(self, x: Tensor, latents: Tensor) -> Tensor:
        """Pre-codes of some latents, `(n, n_latents)`, for standardised inputs."""
        x, centre = self._encoder_input(x)
        return self.encoder.among(x, latents, **centre)

    def pre_codes(self, x: Tensor) -> Tensor:
        """Run the encoder on standardised inputs."""
        x, centre = self._encoder_input(x)
        pre_codes: Tensor = self.encoder(x, **centre)
        return pre_codes

    def _encoder_input(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """What the encoder's methods are called with: inputs, and their centre for an encoder that takes it."""
        if not self.subtract_decoder_bias:
            return self._replicated(x), {}
        assert self.decoder.bias is not None
        bias = local(self.decoder.bias)
        if self.encoder.takes_centre:
            return self._replicated(x), {"centre": self._replicated(bias)}
        return self._replicated(x - bias), {}

    def _replicated(self, x: Tensor) -> Tensor:
        """What the encoder takes: each process finds the gradient through its own latents, and the sum is needed."""
        return self.sharding.replicate(x) if self.sharding is not None and x.requires_grad else x

    def gathered(self, out: SAEOutput) -> SAEOutput:
        """The same output with the codes and pre-codes of all latents; unchanged where latents are not sharded."""
        if self.sharding is None:
            return out
        return SAEOutput(out.x_hat, self.sharding.gather(out.codes), self.sharding.gather(out.pre_codes))

    def standardize(self, x: Tensor) -> Tensor:
        """Check the last dimension of raw inputs and standardise them.

        Raises:
            ValueError: If the last dimension is not `d_in`.
        """
        if x.shape[-1] != self.d_in:
            raise ValueError(
                f"inputs must have d_in = {self.d_in} in their last dimension, but have shape {tuple(x.shape)}"
            )
        standardized: Tensor = self.standardizer(x)
        return standardized

    def forward(self, x: Tensor) -> SAEOutput:
        """Return reconstructions (raw units), codes and pre-codes of raw inputs `(..., d_in)`."""
        out = self.gathered(self.autoencode(self.standardize(x)))
        return out._replace(x_hat=self.standardizer.inverse(out.x_hat))

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of raw inputs: `(..., d_in)` to `(..., d_sae)`."""
        codes: Tensor = self.projection(self.pre_codes(self.standardize(x)))
        return codes if self.sharding is None else self.sharding.gather(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Return reconstructions in raw units: `(..., d_sae)` to `(..., d_in)`.

        Raises:
            ValueError: If the last dimension is not `d_sae`.
        """
        if codes.shape[-1] != self.d_sae:
            raise ValueError(
                f"codes must have d_sae = {self.d_sae} in their last dimension, but have shape {tuple(codes.shape)}"
            )
        if self.sharding is not None:
            codes = codes[..., self.sharding.own]
        return self.standardizer.inverse(self.decoder(codes))

    @torch.no_grad()
    def count_silence(self, fired: Tensor) -> None:
        """Add one batch to the silence of every latent, and reset those that `fired`, bool `(d_sae,)`."""
        self.batches_silent.add_(1).masked_fill_(fired, 0)

    @staticmethod
    @torch.no_grad()
    def fired(codes: Tensor | SparseCodes) -> Tensor:
        """Which latents (of this process) fire anywhere in a batch, bool `(d_sae,)`."""
        if isinstance(codes, SparseCodes):
            return fires(codes.largest_per_latent())
        rows = codes.flatten(0, -2)
        return fires(torch.maximum(rows.amax(0), -rows.amin(0)))  # two reductions: `abs` would copy all codes

    def receptive_field(self) -> ReceptiveField | None:
        """Shape of the set on which a latent fires, as the parts say; None where they do not."""
        firing = self.projection.firing
        return None if firing is None else self.encoder.receptive_field(firing)

    def dynamics(self) -> dict[str, Tensor]:
        """Scalars worth watching during training, by name."""
        return {**self.encoder.dynamics(), **self.projection.dynamics()}
