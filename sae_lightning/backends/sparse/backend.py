"""The backend for CPUs: after the encoder's product, a step touches active latents only."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from sae_lightning.backends.dense import Dense, has_hooks
from sae_lightning.backends.sparse.codes import Pattern, SparseCodes
from sae_lightning.backends.sparse.rules import DECODERS, ENCODERS, PROJECTIONS, REGULARIZERS
from sae_lightning.backends.sparse.support import largest
from sae_lightning.nn.autoencoder import SAEOutput, SparseAutoencoder
from sae_lightning.nn.firing import fires
from sae_lightning.nn.functional import at_least_float32
from sae_lightning.nn.parts import Part
from sae_lightning.nn.regularizers import Regularizer

# Measured on a CPU (benchmarks): where sparse codes begin to cost more than dense products
_SPARSE_BELOW = 0.12  # as a share of d_sae
_LEAST_WORK = 2**23  # multiplications of the encoder's product
_DENSITY_SAMPLES = 64


class SparseOutput(NamedTuple):
    """What a training step works on where codes are sparse."""

    x_hat: Tensor
    """Reconstructions, `(n, d_in)`."""
    codes: SparseCodes
    """Codes at the positions that the projection found."""
    pre_codes: SparseCodes
    """Pre-codes at the same positions."""


class Sparse(Dense):
    """Finds the support of the codes from the encoder's product; the rest of a step costs O(nnz * d_in).

    Whether a batch is worth it is decided by the density of its codes, counted in a few of its samples, and by nothing
    else: a resumed run goes the same way. Batches whose codes are dense, and all batches on accelerators, where the
    counting would stall, take dense products, unless `chunk_size` is given.

    Args:
        core: The SAE, for whose parts there are rules.
        regularizer: What its codes cost, or None.
        chunk_size: Samples whose dense pre-codes are held at a time, which bounds the memory of a step whatever the
            density; None holds those of the whole batch.
        dense_above: Codes per sample above which products are dense; None takes the share of `d_sae` at which they
            were measured to become faster.
    """

    name: ClassVar[str] = "sparse"

    def __init__(
        self,
        core: SparseAutoencoder,
        regularizer: Regularizer | None,
        chunk_size: int | None = None,
        dense_above: int | None = None,
    ) -> None:
        super().__init__(core, regularizer)
        self.chunk_size = None if chunk_size is None else int(chunk_size)
        self.dense_above = dense_above

    @staticmethod
    def without_rule(core: SparseAutoencoder, regularizer: Regularizer | None) -> list[str]:
        """Names of the classes among the parts for which there is no rule."""
        known: list[tuple[Part, Any]] = [
            (core.encoder, ENCODERS),
            (core.projection, PROJECTIONS),
            (core.decoder, DECODERS),
        ]
        missing = [type(part).__name__ for part, rules in known if type(part) not in rules]
        if regularizer is not None and type(regularizer) not in REGULARIZERS:
            missing.append(type(regularizer).__name__)
        return missing

    def forward_train(self, x: Tensor) -> SAEOutput | SparseOutput:  # type: ignore[override]
        """Encode, project and decode standardised inputs `(n, d_in)`, sparsely where that is cheaper."""
        core = self.core
        if not self._may_be_sparse(x):
            return super().forward_train(x)
        if self.chunk_size is not None:
            return self.autoencode_sparsely(x)
        limit = _SPARSE_BELOW * core.d_sae if self.dense_above is None else self.dense_above
        rule = PROJECTIONS[type(core.projection)]
        bound = core.projection.at_most()
        if bound is not None:
            return self.autoencode_sparsely(x) if bound <= limit else super().forward_train(x)
        pre_codes = self.pre_codes(x)  # both ways need them: without a gradient of their own, or with one
        values = pre_codes.detach()
        few = values[: min(_DENSITY_SAMPLES, -(-len(x) // 16))]
        with torch.no_grad():
            dense = len(rule.support(core.projection, few)) > limit * len(few)
            pattern = None if dense else rule.support(core.projection, values)
        if pattern is None:
            return self.project(pre_codes)
        del pre_codes
        return self._autoencode_at(x, pattern, pattern.of(values))

    def _may_be_sparse(self, x: Tensor) -> bool:
        if has_hooks(self.core.encoder) or has_hooks(self.core.projection):
            return False  # the sparse way does not call the parts as modules
        if self.chunk_size is not None:
            return True
        return x.device.type == "cpu" and x.ndim == 2 and x.numel() * self.core.d_sae >= _LEAST_WORK

    def regularize(self, x: Tensor, out: SAEOutput | SparseOutput) -> Tensor:
        """What each sample pays, `(n,)`."""
        if isinstance(out, SAEOutput):
            return super().regularize(x, out)
        return REGULARIZERS[type(self.regularizer)](self, self.regularizer, x, out)

    @torch.no_grad()
    def fired(self, out: SAEOutput | SparseOutput) -> Tensor:
        """Which latents fire anywhere in the batch, bool `(d_sae,)`."""
        return super().fired(out) if isinstance(out, SAEOutput) else fires(out.codes.largest_per_latent())

    def count_firing(self, out: SAEOutput | SparseOutput) -> Tensor:
        """Number of codes that fire in the batch, a scalar."""
        return super().count_firing(out) if isinstance(out, SAEOutput) else fires(out.codes.values).sum()

    # ------------------------------------------------------------------ the sparse way

    def autoencode_sparsely(self, x: Tensor) -> SparseOutput:
        """Encode, project and decode standardised inputs `(n, d_in)`, whatever the density of the codes."""
        projection = self.core.projection
        support = PROJECTIONS[type(projection)].support

        def of_chunk(part: Tensor) -> SparseCodes:
            dense = at_least_float32(self.pre_codes(part))
            pattern = support(projection, dense)
            return SparseCodes(pattern.of(dense), pattern)

        with torch.no_grad():
            pattern, found = self._by_chunk(x, of_chunk)
        return self._autoencode_at(x, pattern, found)

    def _autoencode_at(self, x: Tensor, pattern: Pattern, found: Tensor) -> SparseOutput:
        """The output from the pre-codes that were found in the support of the codes."""
        core = self.core
        pre_codes = SparseCodes(ENCODERS[type(core.encoder)](core, x, pattern, found), pattern)
        codes = SparseCodes(PROJECTIONS[type(core.projection)].at(core.projection, pre_codes), pattern)
        return SparseOutput(DECODERS[type(core.decoder)](core.decoder, codes), codes, pre_codes)

    def codes_among(self, x: Tensor, latents: Tensor, k: int) -> SparseCodes:
        """The k largest positive pre-codes of each sample among some latents, as codes with their gradient.

        Args:
            x: Standardised inputs, `(n, d_in)`.
            latents: Which latents, rising, int64 `(n_latents,)`.
            k: How many, from 1 to `n_latents`.
        """
        d_sae = self.core.d_sae

        def of_chunk(part: Tensor) -> SparseCodes:
            dense = at_least_float32(self.pre_codes_of(part, latents))
            chosen = largest(dense, k)
            positions = chosen.samples * d_sae + latents.index_select(0, chosen.latents)
            return SparseCodes(chosen.of(dense), Pattern(positions, len(part), d_sae))

        with torch.no_grad():
            pattern, found = self._by_chunk(x, of_chunk)
        return SparseCodes(ENCODERS[type(self.core.encoder)](self.core, x, pattern, found), pattern)

    def _by_chunk(self, x: Tensor, of_chunk: Callable[[Tensor], SparseCodes]) -> tuple[Pattern, Tensor]:
        """What a function finds in each chunk of the inputs, as one."""
        # Found positions that stay where they were made would split the memory that the chunk's dense pre-codes leave,
        # so that the next chunk's do not fit in there and memory grows with the batch: they move to arrays made before.
        d_sae = self.core.d_sae
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
            torch.add(codes.pattern.positions, n * d_sae, out=positions[begin:end])
            values[begin:end] = codes.values
            n += len(part)
            del codes
        return Pattern(positions[:end], n, d_sae), values[:end]
