"""Backend for CPUs: after the encoder's product, a step computes with active latents only."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from sae_lightning.backends.dense import Dense, has_hooks
from sae_lightning.backends.sparse.codes import Pattern, SparseCodes, SparseOutput
from sae_lightning.backends.sparse.rules import DECODERS, ENCODERS, PROJECTIONS, REGULARIZERS
from sae_lightning.backends.sparse.support import largest
from sae_lightning.nn.autoencoder import SAEOutput, SparseAutoencoder
from sae_lightning.nn.firing import fires
from sae_lightning.nn.functional import at_least_float32
from sae_lightning.nn.parts import Part
from sae_lightning.nn.regularizers import Regularizer

# limits beyond which sparse codes cost more than dense products, measured on a CPU (benchmarks)
_SPARSE_BELOW = 0.12  # codes per sample, relative to d_sae
_LEAST_WORK = 2**23  # number of multiplications in the encoder's product
_DENSITY_SAMPLES = 64


class Sparse(Dense):
    """Backend that finds the support of the codes after the encoder's product; all else costs O(nnz * d_in).

    A batch is processed densely if a few of its samples have too many nonzero codes. This depends on the batch alone,
    so a resumed run decides alike. Small batches, and all batches on accelerators, which counting would stall, are
    dense as well. With `chunk_size`, all batches are processed sparsely.

    Args:
        core: The SAE; all its parts must have rules (`without_rule`).
        regularizer: Penalty on its codes, or None.
        chunk_size: Number of samples whose dense pre-codes are in memory at a time, which limits the memory of a step;
            None for the whole batch.
        dense_above: Number of codes per sample above which products are dense; None for 12 % of `d_sae`, above which
            dense products were measured to be faster.

    Example:
        >>> import torch
        >>> from sae_lightning.backends.sparse import Sparse
        >>> from sae_lightning.nn import L1, Affine, Decoder, Orthant, SparseAutoencoder
        >>> core = SparseAutoencoder(Affine(2, 2), Orthant(2), Decoder(2, 2))
        >>> _ = torch.nn.init.eye_(core.encoder.weight)
        >>> out = Sparse(core, L1(2), chunk_size=1).forward_train(torch.tensor([[3.0, -1.0], [0.0, 2.0]]))
        >>> out.codes.values.tolist(), out.codes.pattern.latents.tolist()
        ([3.0, 2.0], [0, 1])
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
        """Return the class names of the parts for which this backend has no rule."""
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
        """Encode, project and decode standardized inputs `(n, d_in)`, sparsely if that is cheaper."""
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
        pre_codes = self.pre_codes(x)  # with gradients for the dense case; the sparse one uses their values only
        values = pre_codes.detach()
        few = values[: min(_DENSITY_SAMPLES, -(-len(x) // 16))]
        with torch.no_grad():
            dense = len(rule.support(core.projection, few)) > limit * len(few)
            pattern = None if dense else rule.support(core.projection, values)
        if pattern is None:
            return self.project(pre_codes, train=True)
        del pre_codes
        return self._autoencode_at(x, pattern, pattern.of(values))

    def _may_be_sparse(self, x: Tensor) -> bool:
        if has_hooks(self.core.encoder) or has_hooks(self.core.projection):
            return False  # hooks only run if the parts are called as modules, which sparse steps do not do
        if self.chunk_size is not None:
            return True
        return x.device.type == "cpu" and x.ndim == 2 and x.numel() * self.core.d_sae >= _LEAST_WORK

    def regularize(self, x: Tensor, out: SAEOutput | SparseOutput) -> Tensor:
        """Return the regularizer's penalty per sample, `(n,)`."""
        if isinstance(out, SAEOutput):
            return super().regularize(x, out)
        return REGULARIZERS[type(self.regularizer)](self, self.regularizer, x, out)

    @torch.no_grad()
    def fired(self, out: SAEOutput | SparseOutput) -> Tensor:
        """Return which latents fire on at least one sample of the batch, bool `(d_sae,)`."""
        return super().fired(out) if isinstance(out, SAEOutput) else fires(out.codes.largest_per_latent())

    def count_firing(self, out: SAEOutput | SparseOutput) -> Tensor:
        """Return the number of firing codes in the batch, a scalar."""
        return super().count_firing(out) if isinstance(out, SAEOutput) else fires(out.codes.values).sum()

    # ------------------------------------------------------------------ sparse steps

    def autoencode_sparsely(self, x: Tensor) -> SparseOutput:
        """Encode, project and decode standardized inputs `(n, d_in)` sparsely, at any density of the codes."""
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
        """Return the output for a known support of the codes and the pre-codes `found` there."""
        core = self.core
        pre_codes = SparseCodes(ENCODERS[type(core.encoder)](core, x, pattern, found), pattern)
        codes = SparseCodes(PROJECTIONS[type(core.projection)].at(core.projection, pre_codes), pattern)
        return SparseOutput(DECODERS[type(core.decoder)](core.decoder, codes), codes, pre_codes)

    def codes_among(self, x: Tensor, latents: Tensor, k: int) -> SparseCodes:
        """Return the k largest positive pre-codes of each sample among the given latents, with gradients.

        Args:
            x: Standardized inputs, `(n, d_in)`.
            latents: Latents to choose from, in ascending order, int64 `(n_latents,)`.
            k: Number of codes per sample, from 1 to `n_latents`.

        Returns:
            Sparse codes of all latents, `(n, d_sae)`.
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
        """Apply a function to each chunk of the inputs, and concatenate the sparse codes that it returns."""
        # Copy results to preallocated arrays: results kept in place would fragment the memory that the dense pre-codes
        # of a chunk free, so that those of the next chunk do not fit there, and memory would grow with the batch.
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
