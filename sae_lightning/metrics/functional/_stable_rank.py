"""Stable rank of a positive semidefinite matrix, given by its nonzero part."""

import torch
from torch import Tensor


def stable_rank(gram: Tensor) -> Tensor:
    r"""Stable rank ``trace / spectral norm`` of a positive semidefinite matrix.

    For such a matrix the singular values are the eigenvalues, so that this is the sum of the singular values over the
    largest one. ``Z Z^T`` and ``Z^T Z`` share their nonzero eigenvalues: pass the smaller one.

    Args:
        gram: ``(n, n)`` float64, symmetric; rows with a zero diagonal are zero rows and are left out.

    Returns:
        Float64 scalar in 1..n, NaN for an empty, zero or non-finite matrix.
    """
    diagonal = gram.diagonal()
    kept = diagonal != 0  # which keeps NaN
    gram = gram[kept][:, kept]
    if gram.numel() == 0 or not bool(torch.isfinite(gram).all()):
        return torch.full((), torch.nan, dtype=torch.float64, device=diagonal.device)
    largest: Tensor = torch.linalg.eigvalsh(gram)[-1]
    return gram.diagonal().sum() / largest
