"""The definitions, written down as they are: dense codes, plain autograd, PyTorch's default Adam.

SpaDE is computed as in the authors' code: the differences to all prototypes are materialized, `(batch, d_sae, d_in)`,
and the simplex projection sorts. Each naive SAE starts from the weights of one of this package, whose parameter names
it keeps, so that losses and gradients can be compared.
"""

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the usual name)

from benchmarks.contender import LEARNING_RATE, Contender, Entry, autocast, dense_bytes
from benchmarks.ours import make_sae, threshold_of
from benchmarks.problem import Problem, Shape
from sae_lightning.modules import BaseSAE

ARCHITECTURES = ("relu", "jumprelu", "topk", "spade")


def sparsemax(v: Tensor) -> Tensor:
    """Projection of the last dimension onto the simplex by sorting (Martins and Astudillo 2016, algorithm 1)."""
    descending = v.sort(dim=-1, descending=True).values
    sums = descending.cumsum(-1)
    ranks = torch.arange(1, v.shape[-1] + 1, device=v.device, dtype=v.dtype)
    support = (1 + ranks * descending > sums).sum(-1, keepdim=True)
    tau = (sums.gather(-1, support - 1) - 1) / support
    return (v - tau).relu()


def straight_through(value: Tensor, slope: Tensor, threshold: Tensor) -> Tensor:
    """`value`, with the derivative `slope` with respect to the threshold."""
    return value + slope.detach() * (threshold - threshold.detach())


class NaiveSAE:
    """The loss of an SAE as a formula of its parameters.

    Args:
        architecture: One of `ARCHITECTURES`.
        sae: The SAE whose values are copied.
        k: Number of codes that TopK keeps.
    """

    def __init__(self, architecture: str, sae: BaseSAE, k: int) -> None:
        self.architecture = architecture
        self.parameters = {name: p.detach().clone().requires_grad_() for name, p in sae.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in sae.named_buffers()}
        self.mean, self.scale = buffers["sae.standardizer.input_mean"], buffers["sae.standardizer.input_scale"]
        self.gamma = sae.gamma
        self.bandwidth = float(getattr(sae.sae.projection, "bandwidth", 1.0))
        self.k = k

    def loss(self, x: Tensor) -> Tensor:
        """Loss of a batch of raw inputs."""
        x = (x - self.mean) / self.scale
        codes, penalty = self._spade(x) if self.architecture == "spade" else self._linear(x)
        return (x - self._decode(codes)).square().sum(-1).mean() + self.gamma * penalty.mean()

    def codes(self, x: Tensor) -> Tensor:
        """Codes of raw inputs."""
        x = (x - self.mean) / self.scale
        return (self._spade(x) if self.architecture == "spade" else self._linear(x))[0]

    def _spade(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.parameters
        distances = (x[:, None, :] - p["sae.encoder.weight"][None, :, :]).square().sum(-1)
        codes = sparsemax(-F.softplus(p["sae.encoder.raw_lambda"]) * distances)
        return codes, (codes * distances).sum(-1)

    def _linear(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.parameters
        v = (x - p["sae.decoder.bias"]) @ p["sae.encoder.weight"].T
        if "sae.encoder.bias" in p:
            v = v + p["sae.encoder.bias"]
        if self.architecture == "relu":
            return v.relu(), v.relu().sum(-1)
        if self.architecture == "topk":  # no latent is dead, so there is nothing else to pay
            values, indices = v.topk(self.k, dim=-1)
            codes = torch.zeros_like(v).scatter(-1, indices, values.relu())
            return codes, torch.zeros_like(x[:, 0])
        threshold = p["sae.projection.log_threshold"].exp()
        above = (v > threshold).to(v.dtype)
        near = ((v - threshold).abs() < self.bandwidth / 2).to(v.dtype)
        codes = straight_through(v * above, -threshold / self.bandwidth * near, threshold)
        return codes, straight_through(above, -near / self.bandwidth, threshold).sum(-1)

    def _decode(self, codes: Tensor) -> Tensor:
        atoms = self.parameters["sae.decoder.weight"]
        if self.architecture == "spade":
            return codes @ atoms
        atoms = atoms / (atoms.norm(dim=-1, keepdim=True) + 1e-6)
        return codes @ atoms + self.parameters["sae.decoder.bias"]


class Naive(Contender):
    """The naive loss, autograd, clipping to norm 1 and `torch.optim.Adam`."""

    def __init__(self, architecture: str, problem: Problem) -> None:
        sae = make_sae(architecture, problem.shape).to(problem.device)
        sae.initialize(problem.samples)
        self.sae = NaiveSAE(architecture, sae, problem.shape.k)
        self.optimizer = torch.optim.Adam(self.sae.parameters.values(), lr=LEARNING_RATE)
        self.problem = problem

    def step(self, x: Tensor) -> None:
        """The textbook's loop body."""
        self.optimizer.zero_grad()
        with autocast(self.problem):
            loss = self.sae.loss(x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters.values(), 1.0)
        self.optimizer.step()

    def codes(self, x: Tensor) -> Tensor:
        """Codes by the formula."""
        return self.sae.codes(x)

    def raise_threshold(self, level: float) -> None:
        """Move the thresholds or biases."""
        threshold_of(self.sae.parameters, level)


def spade_bytes(shape: Shape) -> int:
    """The differences, their squares, and what autograd makes of both."""
    return dense_bytes(shape) + 4 * 4 * shape.batch * shape.d_sae * shape.d_in


ENTRIES = [
    Entry(
        "naive",
        a,
        lambda problem, a=a: Naive(a, problem),
        bytes_needed=spade_bytes if a == "spade" else dense_bytes,
        in_sweep=a == "spade",
    )
    for a in ARCHITECTURES
]
