"""Definition of a firing latent, used for L0, dead latents and every metric."""

import torch
from torch import Tensor

FIRING_THRESHOLD: float = 1e-6


def fires(codes: Tensor, threshold: float = FIRING_THRESHOLD) -> Tensor:
    r"""Return where codes fire, $|z| > 10^{-6}$.

    The sign does not matter, and NaN does not fire. Codes are converted to at least float32 first, since half precision
    would round the threshold (1e-6 is subnormal in float16).

    Args:
        codes: Codes of any shape.
        threshold: Magnitude that a firing code exceeds.

    Returns:
        Bool tensor of the same shape.

    References:
        Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822, for the threshold.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import fires
        >>> fires(torch.tensor([0.5, -0.5, 1e-7, 0.0]))
        tensor([ True,  True, False, False])
    """
    wide = codes if codes.dtype == torch.float64 else codes.float()
    return wide.abs() > threshold
