"""The training steps of this package, as its training loop runs them."""

import torch
from torch import Tensor

from benchmarks.contender import NEVER, Contender, Entry, autocast, silence_some, use_tiny_learning_rate
from benchmarks.problem import N_BATCHES, Problem, Shape
from sae_lightning.modules import BaseSAE, JumpReLUSAE, ReLUSAE, SpaDE, TopKSAE
from sae_lightning.modules.allocator import keep_freed_memory

ARCHITECTURES = ("relu", "jumprelu", "topk", "topk-auxk", "spade")


def make_sae(architecture: str, shape: Shape) -> BaseSAE:
    """An SAE with the package's defaults; SpaDE's lambda will be calibrated so that about k latents fire."""
    d_in, d_sae, _, k = shape
    match architecture:
        case "relu":
            return ReLUSAE(d_in, d_sae)
        case "jumprelu":
            return JumpReLUSAE(d_in, d_sae)
        case "topk":  # as long as no latent is dead
            return TopKSAE(d_in, d_sae, k=k, dead_after=NEVER)
        case "topk-auxk":
            return TopKSAE(d_in, d_sae, k=k, dead_after=N_BATCHES)
        case "spade":
            return SpaDE(d_in, d_sae, l0_init=float(k))
    raise ValueError(f"architecture must be one of {ARCHITECTURES}, but is {architecture!r}")


def threshold_of(parameters: dict[str, Tensor], level: float) -> None:
    """Let only pre-codes above `level` fire, in an SAE of this package or the naive copy of it."""
    if "sae.projection.log_threshold" in parameters:
        parameters["sae.projection.log_threshold"].data.fill_(level).log_()
    elif "sae.encoder.bias" in parameters:
        parameters["sae.encoder.bias"].data.sub_(level)


class Ours(Contender):
    """`learn`, backward, clipping to norm 1 and the package's default optimizer."""

    def __init__(self, architecture: str, problem: Problem) -> None:
        if problem.device.type == "cpu":
            keep_freed_memory()  # as `on_fit_start` does
        self.sae = make_sae(architecture, problem.shape).to(problem.device)
        self.sae.initialize(problem.samples)
        if architecture == "topk-auxk":
            silence_some(dict(self.sae.named_parameters())["sae.encoder.weight"])
        self.optimizer, _ = self.sae.make_optimizer()
        use_tiny_learning_rate(self.optimizer)
        self.problem = problem

    def step(self, x: Tensor) -> None:
        """What Lightning's loop runs, without Lightning."""
        self.optimizer.zero_grad()
        with autocast(self.problem):
            loss = self.sae.learn(x).terms["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.sae.parameters(), 1.0)
        self.optimizer.step()

    def codes(self, x: Tensor) -> Tensor:
        """`encode`."""
        return self.sae.encode(x)

    def raise_threshold(self, level: float) -> None:
        """Move the thresholds or biases."""
        threshold_of(dict(self.sae.named_parameters()), level)


ENTRIES = [
    Entry("sae_lightning", a, lambda problem, a=a: Ours(a, problem), in_sweep=a != "topk-auxk") for a in ARCHITECTURES
]
