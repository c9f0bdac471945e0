"""Downstream fidelity: what a model loses when an SAE's reconstructions take the place of its activations."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the usual name)


class FidelityResult(NamedTuple):
    """Losses of a model in nats per token, and what they say about the reconstructions in it.

    Attributes:
        cross_entropy: Scalar, with the reconstructions in place.
        clean: Scalar, the model's own.
        zero: Scalar, with zeros in place of the activations.
        mean: Scalar, with their mean in place.
        recovered_from_zero: Scalar, share of the loss between zero ablation and the model's own that the
            reconstructions recover; 1 is the model's own loss.
        recovered_from_mean: Scalar, the same between mean ablation and the model's own.
        kl: Scalar, Kullback-Leibler divergence of the predictions from the model's own, nats per token.

    Each is NaN where nothing was seen.
    """

    cross_entropy: Tensor
    clean: Tensor
    zero: Tensor
    mean: Tensor
    recovered_from_zero: Tensor
    recovered_from_mean: Tensor
    kl: Tensor


def fidelity(logits: Tensor, clean: Tensor, zero: Tensor, mean: Tensor, targets: Tensor) -> FidelityResult:
    r"""Loss and divergence of a model with reconstructions in the place of a layer's activations.

    .. math:: \mathrm{recovered} = \frac{L_{ablated} - L_{spliced}}{L_{ablated} - L_{clean}},
        \qquad \mathrm{KL} = \mathrm{mean}_t \sum_w p_{clean}(w) \log \frac{p_{clean}(w)}{p_{spliced}(w)}

    Args:
        logits: With reconstructions in place, ``(n_tokens, n_words)``.
        clean: The model's own, same shape.
        zero: With zeros in place, same shape.
        mean: With the mean activation in place, same shape.
        targets: What came next, int64 ``(n_tokens,)``.

    Returns:
        The losses and what follows from them.

    Raises:
        ValueError: if shapes differ.

    Source: Bricken et al. 2023, Towards Monosemanticity; Gao et al. 2024, arXiv 2406.04093.

    Example:
        >>> import torch
        >>> own = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
        >>> result = fidelity(own / 2, own, 0 * own, 0 * own, torch.tensor([0, 1]))
        >>> result.recovered_from_zero
        tensor(0.8388, dtype=torch.float64)
    """
    return _fidelity_compute(*_fidelity_update(logits, clean, zero, mean, targets))


def _fidelity_update(
    logits: Tensor, clean: Tensor, zero: Tensor, mean: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum the losses (spliced, clean, zero, mean) and the divergence of one batch, and count its tokens."""
    for name, given in {"logits": logits, "zero": zero, "mean": mean}.items():
        if given.shape != clean.shape or given.shape[:-1] != targets.shape:
            raise ValueError(
                f"{name} must have the shape of clean, {tuple(clean.shape)}, one row per target, "
                f"{tuple(targets.shape)}, "
                f"but has {tuple(given.shape)}"
            )
    losses = [F.cross_entropy(given.double(), targets, reduction="sum") for given in (logits, clean, zero, mean)]
    own, spliced = clean.double().log_softmax(-1), logits.double().log_softmax(-1)
    divergence = F.kl_div(spliced, own, reduction="sum", log_target=True)
    n = torch.tensor(len(targets), device=targets.device)
    return torch.stack(losses), divergence, n


def _fidelity_compute(losses: Tensor, divergence: Tensor, n: Tensor) -> FidelityResult:
    """Average, and compare."""
    spliced, clean, zero, mean = (losses / n).unbind()
    return FidelityResult(
        cross_entropy=spliced,
        clean=clean,
        zero=zero,
        mean=mean,
        recovered_from_zero=(zero - spliced) / (zero - clean),
        recovered_from_mean=(mean - spliced) / (mean - clean),
        kl=divergence / n,
    )
