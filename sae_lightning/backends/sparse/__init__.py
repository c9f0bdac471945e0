"""Sparse codes on the CPU: where they are nonzero, the products that touch only these, and a rule for each part."""

from sae_lightning.backends.sparse.backend import Sparse, SparseOutput
from sae_lightning.backends.sparse.codes import Pattern, SparseCodes

__all__ = ["Pattern", "Sparse", "SparseCodes", "SparseOutput"]
