"""Backend for sparse codes on the CPU, with products over their nonzero entries only."""

from sae_lightning.backends.sparse.backend import Sparse
from sae_lightning.backends.sparse.codes import Pattern, SparseCodes, SparseOutput

__all__ = ["Pattern", "Sparse", "SparseCodes", "SparseOutput"]
