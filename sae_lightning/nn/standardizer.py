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
        input_layers: Number of layers of an input, each with its own scale; None for inputs without layers.

    Shape:
        Raw: `(..., d_in)`, or `(..., L, d_in / L)` with L layers. Standardized: `(..., d_in)`, layers side by side.

    Raises:
        ValueError: If `input_layers` does not divide `d_in`.

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

    def __init__(self, d_in: int, enabled: bool = True, input_layers: int | None = None) -> None:
        super().__init__()
        if input_layers is not None and (input_layers < 1 or d_in % input_layers):
            raise ValueError(f"input_layers must divide the encoder's d_in, {d_in}, but is {input_layers}")
        self.enabled = enabled
        self.raw_shape = (d_in,) if input_layers is None else (input_layers, d_in // input_layers)
        self.register_buffer("input_mean", torch.zeros(d_in))
        self.register_buffer("input_scale", torch.ones(() if input_layers is None else d_in))  # of each feature's layer

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
        if x.shape[1:] != self.raw_shape:
            wanted = ", ".join(map(str, ("n", *self.raw_shape)))
            raise ValueError(f"training samples must have shape ({wanted}), but have {tuple(x.shape)}")
        layers = [self._statistics(layer) for layer in (x.unbind(1) if x.ndim == 3 else [x])]
        self.input_mean.copy_(torch.cat([mean for mean, _ in layers]))
        if self.input_scale.ndim == 0:
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
        """Standardize raw inputs; the result has the dtype of the buffers.

        Raises:
            ValueError: If the last dimensions are not those of an input.
        """
        shape = self.raw_shape
        if x.shape[-len(shape) :] != shape:
            wanted = f"d_in = {shape[0]} in their last dimension" if len(shape) == 1 else f"shape (..., {shape})"
            raise ValueError(f"inputs must have {wanted}, but have shape {tuple(x.shape)}")
        x = x if len(shape) == 1 else x.flatten(-2)
        if not self.enabled:
            return x.to(self.input_mean.dtype)
        return (x - self.input_mean) / self.input_scale

    def inverse(self, x: Tensor) -> Tensor:
        """Convert standardized values `(..., d_in)` to raw units."""
        raw = x * self.input_scale + self.input_mean if self.enabled else x
        return raw if len(self.raw_shape) == 1 else raw.reshape(*raw.shape[:-1], *self.raw_shape)
