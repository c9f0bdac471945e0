"""Stable rank of a positive semidefinite matrix."""

import torch
from torch import Tensor


def stable_rank(gram: Tensor) -> Tensor:
    r"""Return the stable rank ``trace / spectral norm`` of a positive semidefinite matrix.

    It is the sum of the singular values, which are the eigenvalues of such a matrix, divided by the largest one.
    ``Z Z^T`` and ``Z^T Z`` have the same nonzero eigenvalues: pass the smaller matrix.

    Args:
        gram: ``(n, n)`` float64, symmetric; rows with a zero diagonal are zero and are left out.

    Returns:
        Float64 scalar in 1..n, NaN for an empty, zero or non-finite matrix.
    """
    diagonal = gram.diagonal()
    kept = diagonal != 0  # NaN is kept, to be returned
    gram = gram[kept][:, kept]
    if gram.numel() == 0 or not bool(torch.isfinite(gram).all()):
        return torch.full((), torch.nan, dtype=torch.float64, device=diagonal.device)
    largest: Tensor = torch.linalg.eigvalsh(gram)[-1]
    return gram.diagonal().sum() / largest
