"""When a latent fires: the one rule behind L0, silence, dead latents and every metric."""

import torch
from torch import Tensor

FIRING_THRESHOLD: float = 1e-6


def fires(codes: Tensor, threshold: float = FIRING_THRESHOLD) -> Tensor:
    r"""Tell where a latent fires, $|z| > 10^{-6}$, compared in at least float32.

    Codes may be signed: a negative code counts as a positive one does. Half precision would round the threshold itself
    (1e-6 is subnormal in float16), so codes are widened first. NaN does not fire.

    Args:
        codes: Codes of any shape.
        threshold: The magnitude to exceed.

    Returns:
        Bool tensor of the same shape.

    Source: the value is that of Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822.

    Example:
        >>> fires(torch.tensor([0.5, -0.5, 1e-7, 0.0]))
        tensor([ True,  True, False, False])
    """
    wide = codes if codes.dtype == torch.float64 else codes.float()
    return wide.abs() > threshold
