"""Metric class of downstream fidelity."""

from torch import Tensor

from sae_lightning.metrics._base import SAEMetric
from sae_lightning.metrics.functional.fidelity import FidelityResult, _fidelity_compute, _fidelity_update


class Fidelity(SAEMetric):
    r"""Loss and KL divergence of a model when reconstructions replace the activations of a layer.

    .. math:: \mathrm{recovered} = \frac{L_{ablated} - L_{spliced}}{L_{ablated} - L_{clean}},
        \qquad \mathrm{KL} = \mathrm{mean}_t \sum_w p_{clean}(w) \log \frac{p_{clean}(w)}{p_{spliced}(w)}

    Activations are unchanged (clean), replaced by reconstructions (spliced), or by zeros or their mean (ablated).
    Functional form: :func:`sae_lightning.metrics.functional.fidelity`.

    References:
        Bricken et al. 2023, "Towards Monosemanticity"; Gao et al. 2024, arXiv 2406.04093.

    Example:
        >>> import torch
        >>> from sae_lightning.metrics import Fidelity
        >>> metric = Fidelity()
        >>> clean, spliced, ablated = (torch.tensor([[p, 1 - p]]).log() for p in (1 / 2, 1 / 4, 1 / 8))
        >>> metric.update(spliced, clean, zero=ablated, mean=ablated, targets=torch.tensor([0]))
        >>> metric.compute().recovered_from_zero  # of losses log(4), log(2) and log(8)
        tensor(0.5000, dtype=torch.float64)
    """

    losses: Tensor
    divergence: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._add_sum("losses", 4)
        self._add_sum("divergence")
        self._add_counter("tokens")

    def update(self, logits: Tensor, clean: Tensor, zero: Tensor, mean: Tensor, targets: Tensor) -> None:
        """Add one batch.

        Args:
            logits: Logits with reconstructions in place of the activations, ``(n_tokens, n_words)``.
            clean: Logits of the unchanged model, same shape.
            zero: Logits with zeros in place of the activations, same shape.
            mean: Logits with the mean activation in place of each, same shape.
            targets: The tokens to predict, int64 ``(n_tokens,)``.

        Raises:
            ValueError: if shapes differ.
        """
        self._add(_fidelity_update(logits, clean, zero, mean, targets), "losses", "divergence", "tokens")

    def compute(self) -> FidelityResult:
        """Return the mean losses over all tokens since the last reset."""
        return _fidelity_compute(self.losses, self.divergence, self.tokens)
