"""Standardization of the inputs, saved with the weights."""

import math

import torch
from torch import Tensor, nn

_MOST = 0.95
_SMALLEST = 1e-4  # least spread of most standardized inputs: float32 has hardly three digits for a smaller one


class Standardizer(nn.Module):
    r"""Shift and scale inputs so that their mean is zero and their mean squared norm is `d_in`.

    $$ \tilde x = (x - \mu) / s, \qquad s^2 = \mathrm{mean} \|x - \mu\|^2 / d_{in} $$

    Mean and scale are buffers, so a saved SAE takes raw inputs and returns reconstructions in raw units.

    Args:
        d_in: Size of an input.
        enabled: Whether to standardize; if False, inputs stay as they are.
        n_layers: Number of layers that the inputs hold side by side; each layer has its own scale.

    Shape:
        Inputs and outputs: `(..., d_in)`.

    Example:
        >>> import torch
        >>> from sae_lightning.nn import Standardizer
        >>> standardizer = Standardizer(1)
        >>> standardizer.fit(torch.tensor([[8.0], [8.0], [12.0], [12.0]]))  # mean 10, standard deviation 2
        >>> standardizer(torch.tensor([14.0])), standardizer.inverse(torch.tensor([2.0]))
        (tensor([2.]), tensor([14.]))
    """

    input_mean: Tensor
    input_scale: Tensor

    def __init__(self, d_in: int, enabled: bool = True, n_layers: int = 1) -> None:
        super().__init__()
        self.enabled = enabled
        self.n_layers = n_layers
        self.register_buffer("input_mean", torch.zeros(d_in))
        self.register_buffer("input_scale", torch.ones(() if n_layers == 1 else d_in))  # of each feature's layer

    @torch.no_grad()
    def fit(self, x: Tensor) -> None:
        """Set mean and scale to those of inputs `(n, d_in)`; do nothing if not `enabled`.

        Raises:
            ValueError: If there are fewer than two inputs, all are equal, or some are so much larger than the others
                that the others would be rounded away.
        """
        if not self.enabled:
            return
        if len(x) < 2:
            raise ValueError(f"standardization needs at least two training samples, but got {len(x)}")
        if x.ndim != 2 or x.shape[-1] != len(self.input_mean):
            raise ValueError(f"training samples must have shape (n, {len(self.input_mean)}), but have {tuple(x.shape)}")
        layers = [self._statistics(layer) for layer in x.chunk(self.n_layers, dim=-1)]
        self.input_mean.copy_(torch.cat([mean for mean, _ in layers]))
        if self.n_layers == 1:
            self.input_scale.fill_(layers[0][1])
        else:
            self.input_scale.copy_(torch.cat([torch.full_like(mean, scale) for mean, scale in layers]))

    @staticmethod
    def _statistics(x: Tensor) -> tuple[Tensor, float]:
        """Mean and scale of one layer's samples `(n, d)`."""
        if bool((x == x[0]).all()):
            raise ValueError("standardization needs training samples that differ, but all are equal")
        x = x.double()
        mean = x.mean(0)
        scale = math.sqrt((x - mean).square().sum(-1).mean().item() / x.shape[-1])
        sizes = (x - x.median(0).values).square().mean(-1).sqrt().sort().values
        most = float(sizes[max(1, int(_MOST * (len(sizes) - 1)))])
        if most < _SMALLEST * scale:
            raise ValueError(
                f"standardization needs training samples of comparable size, but {_MOST:.0%} of them lie within "
                f"{most:.3g} (root mean square) of their median, and one lies {float(sizes[-1]):.3g} away: remove such "
                "outliers, or give standardize = False"
            )
        return mean, scale

    def forward(self, x: Tensor) -> Tensor:
        """Standardize raw inputs `(..., d_in)`; the result has the dtype of the buffers."""
        if not self.enabled:
            return x.to(self.input_mean.dtype)
        return (x - self.input_mean) / self.input_scale

    def inverse(self, x: Tensor) -> Tensor:
        """Convert standardized values `(..., d_in)` to raw units."""
        return x * self.input_scale + self.input_mean if self.enabled else x
