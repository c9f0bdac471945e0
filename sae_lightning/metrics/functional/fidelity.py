"""Downstream fidelity: loss of a model when an SAE's reconstructions replace its activations."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the usual name)


class FidelityResult(NamedTuple):
    """Losses of a model in nats per token, and the share of the loss that reconstructions recover.

    Attributes:
        cross_entropy: Scalar, loss with reconstructions in place of the activations.
        clean: Scalar, loss of the unchanged model.
        zero: Scalar, loss with zeros in place of the activations.
        mean: Scalar, loss with the mean activation in place of each.
        recovered_from_zero: Scalar, share of the gap between zero ablation and the unchanged model that the
            reconstructions close; 1 if their loss is that of the unchanged model.
        recovered_from_mean: Scalar, the same share of the gap between mean ablation and the unchanged model.
        kl: Scalar, Kullback-Leibler divergence from the predictions of the unchanged model, nats per token.

    Each is NaN without tokens.
    """

    cross_entropy: Tensor
    clean: Tensor
    zero: Tensor
    mean: Tensor
    recovered_from_zero: Tensor
    recovered_from_mean: Tensor
    kl: Tensor


def fidelity(logits: Tensor, clean: Tensor, zero: Tensor, mean: Tensor, targets: Tensor) -> FidelityResult:
    r"""Compute loss and KL divergence of a model when reconstructions replace the activations of a layer.

    .. math:: \mathrm{recovered} = \frac{L_{ablated} - L_{spliced}}{L_{ablated} - L_{clean}},
        \qquad \mathrm{KL} = \mathrm{mean}_t \sum_w p_{clean}(w) \log \frac{p_{clean}(w)}{p_{spliced}(w)}

    Activations are unchanged (clean), replaced by reconstructions (spliced), or by zeros or their mean (ablated).

    Args:
        logits: Logits with reconstructions in place of the activations, ``(n_tokens, n_words)``.
        clean: Logits of the unchanged model, same shape.
        zero: Logits with zeros in place of the activations, same shape.
        mean: Logits with the mean activation in place of each, same shape.
        targets: The tokens to predict, int64 ``(n_tokens,)``.

    Returns:
        The mean losses, the recovered shares and the divergence.

    Raises:
        ValueError: if shapes differ.

    References:
        Bricken et al. 2023, "Towards Monosemanticity"; Gao et al. 2024, arXiv 2406.04093.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics.functional import fidelity
        >>> clean, spliced, ablated = (torch.tensor([[p, 1 - p]]).log() for p in (1 / 2, 1 / 4, 1 / 8))
        >>> result = fidelity(spliced, clean, zero=ablated, mean=ablated, targets=torch.tensor([0]))
        >>> result.recovered_from_zero  # of losses log(4), log(2) and log(8)
        tensor(0.5000, dtype=torch.float64)
    """
    return _fidelity_compute(*_fidelity_update(logits, clean, zero, mean, targets))


def _fidelity_update(
    logits: Tensor, clean: Tensor, zero: Tensor, mean: Tensor, targets: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return sums of the losses (spliced, clean, zero, mean) and of the divergence, and the number of tokens."""
    for name, given in {"logits": logits, "zero": zero, "mean": mean}.items():
        if given.shape != clean.shape or given.shape[:-1] != targets.shape:
            raise ValueError(
                f"{name} must have the shape of clean, {tuple(clean.shape)}, with one row per target, "
                f"{tuple(targets.shape)}, but has {tuple(given.shape)}"
            )
    losses = [F.cross_entropy(given.double(), targets, reduction="sum") for given in (logits, clean, zero, mean)]
    own, spliced = clean.double().log_softmax(-1), logits.double().log_softmax(-1)
    divergence = F.kl_div(spliced, own, reduction="sum", log_target=True)
    n = torch.tensor(len(targets), device=targets.device)
    return torch.stack(losses), divergence, n


def _fidelity_compute(losses: Tensor, divergence: Tensor, n: Tensor) -> FidelityResult:
    """Average over tokens and compare the losses."""
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
