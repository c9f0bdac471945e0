"""Downstream fidelity as a metric class."""

from torch import Tensor

from sae_lightning.metrics._base import SAEMetric
from sae_lightning.metrics.functional.fidelity import FidelityResult, _fidelity_compute, _fidelity_update


class Fidelity(SAEMetric):
    r"""Loss and divergence of a model with reconstructions in the place of a layer's activations.

    .. math:: \mathrm{recovered} = \frac{L_{ablated} - L_{spliced}}{L_{ablated} - L_{clean}},
        \qquad \mathrm{KL} = \mathrm{mean}_t \sum_w p_{clean}(w) \log \frac{p_{clean}(w)}{p_{spliced}(w)}

    Memory: six numbers.

    Source: Bricken et al. 2023, Towards Monosemanticity; Gao et al. 2024, arXiv 2406.04093. Functional twin:
    :func:`sae_lightning.metrics.functional.fidelity`.

    Example:
        >>> import torch
        >>> metric = Fidelity()
        >>> own = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
        >>> metric.update(own / 2, own, 0 * own, 0 * own, torch.tensor([0, 1]))
        >>> metric.compute().recovered_from_zero
        tensor(0.8388, dtype=torch.float64)
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
            logits: With reconstructions in place, ``(n_tokens, n_words)``.
            clean: The model's own, same shape.
            zero: With zeros in place, same shape.
            mean: With the mean activation in place, same shape.
            targets: What came next, int64 ``(n_tokens,)``.

        Raises:
            ValueError: if shapes differ.
        """
        self._add(_fidelity_update(logits, clean, zero, mean, targets), "losses", "divergence", "tokens")

    def compute(self) -> FidelityResult:
        """Losses of everything seen since the last reset."""
        return _fidelity_compute(self.losses, self.divergence, self.tokens)
