"""Dead latents: latents that never fire."""

from typing import NamedTuple

import torch
from torch import Tensor

from sae_lightning.metrics.functional._inputs import check_matrix
from sae_lightning.nn.firing import fires


class DeadLatentsResult(NamedTuple):
    """Latents that fired on no sample.

    Attributes:
        fraction: Scalar float64, share of latents that are dead. NaN without samples.
        n_dead: Scalar int64, number of latents that are dead.
        alive: ``(d_sae,)`` bool, the latents that are not dead.
    """

    fraction: Tensor
    n_dead: Tensor
    alive: Tensor


def dead_latents(codes: Tensor) -> DeadLatentsResult:
    r"""Compute the share of latents that never fire, :math:`|\{i : |z_{ni}| \le 10^{-6}\ \forall n\}| / d_{sae}`.

    Args:
        codes: ``(batch, d_sae)``.

    Returns:
        The share and the number of dead latents, and which ones are alive.

    Raises:
        ValueError: if ``codes`` is not a floating point matrix.

    References:
        Hindupur, Lubana, Fel and Ba 2025, arXiv 2503.01822.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics.functional import dead_latents
        >>> dead_latents(torch.tensor([[1.0, 0.0], [0.5, 0.0]]))
        DeadLatentsResult(fraction=tensor(0.5000, dtype=torch.float64), n_dead=tensor(1), alive=tensor([ True, False]))
    """
    return _dead_latents_compute(*_dead_latents_update(codes))


def _dead_latents_update(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Return each latent's number of firings, ``(d_sae,)`` int64, and the number of samples, scalar int64."""
    codes = check_matrix("codes", codes)
    samples = torch.full((), codes.shape[0], dtype=torch.int64, device=codes.device)
    return fires(codes).sum(dim=0), samples


def _dead_latents_compute(fired: Tensor, samples: Tensor) -> DeadLatentsResult:
    """Find the latents with a count of zero."""
    alive = fired > 0
    n_dead = (~alive).sum()
    fraction = torch.where(samples > 0, n_dead.double() / alive.numel(), torch.nan)
    return DeadLatentsResult(fraction=fraction, n_dead=n_dead, alive=alive)
