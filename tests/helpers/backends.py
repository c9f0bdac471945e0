"""What backends are compared with: the formulas differentiated by autograd, and tensors of another device."""

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from sae_lightning.backends import Dense
from sae_lightning.backends.sparse import Sparse, SparseOutput
from sae_lightning.nn import Regularizer, SparseAutoencoder
from tests.helpers import saes
from tests.helpers.saes import GAMMA


def loss_of(backend: Dense, out: object, gamma: float, x: Tensor) -> Tensor:
    """What training minimizes, of standardized inputs and what a backend made of them."""
    loss = (x - out.x_hat).square().sum(-1).mean()
    return loss if backend.regularizer is None else loss + gamma * backend.regularize(x, out).mean()


def training_loss(
    sae: SparseAutoencoder,
    regularizer: Regularizer | None,
    gamma: float,
    x_raw: Tensor,
    sparsely: bool = False,
    chunk_size: int | None = None,
) -> Tensor:
    """What training minimizes, in standardized units, by the sparse backend or the formulas."""
    if not sparsely:
        return saes.training_loss(sae, regularizer, gamma, x_raw)
    backend = Sparse(sae, regularizer, chunk_size)
    x = sae.standardize(x_raw)
    return loss_of(backend, backend.autoencode_sparsely(x), gamma, x)


def assert_same_as_formulas(
    sae: SparseAutoencoder,
    regularizer: Regularizer | None,
    x_raw: Tensor,
    chunk_size: int | None = None,
    tolerance: float = 1e-10,
) -> None:
    """Compare outputs, loss, what fires and all gradients (of inputs too) of the dense and the sparse backend."""
    leaves = {"inputs": x_raw.clone().requires_grad_(), **dict(sae.named_parameters())}
    x = sae.standardize(leaves["inputs"])
    formulas = sae.autoencode(x)
    loss = saes.training_loss(sae, regularizer, GAMMA, leaves["inputs"])
    gradients = torch.autograd.grad(loss, list(leaves.values()))
    sparse = Sparse(sae, regularizer, chunk_size)
    found = sparse.autoencode_sparsely(x)
    assert isinstance(found, SparseOutput)
    dense = Dense(sae, regularizer)
    for backend, out in ((dense, dense.forward_train(x)), (dense, dense.autoencode(x)), (sparse, found)):
        codes, pre_codes, expected = out.codes, out.pre_codes, formulas.pre_codes
        if isinstance(out, SparseOutput):
            codes, pre_codes, expected = codes.dense(), pre_codes.values, pre_codes.pattern.of(expected)
        compared = {"x_hat": (out.x_hat, formulas.x_hat), "codes": (codes, formulas.codes)}
        compared["pre-codes"] = (pre_codes, expected)
        assert torch.equal(backend.fired(out), sae.fired(formulas.codes))
        assert backend.count_firing(out) == (formulas.codes.abs() > 1e-6).sum()
        own = loss_of(backend, out, GAMMA, x)
        compared["loss"] = (own, loss)
        pairs = zip(torch.autograd.grad(own, list(leaves.values()), retain_graph=True), gradients, strict=True)
        compared |= {f"gradient of {name}": pair for name, pair in zip(leaves, pairs, strict=True)}
        for name, (actual, wanted) in compared.items():
            assert actual.dtype == wanted.dtype, name
            error = (actual - wanted).abs().max().item() if wanted.numel() else 0.0
            largest = wanted.abs().max().item() if wanted.numel() else 0.0
            assert error <= tolerance * max(1.0, largest), f"{backend.name}: {name} is off by {error}"


class Elsewhere(TorchFunctionMode):
    """Tensors of the CPU that say they are on another device, so that its branches run here."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func == torch.Tensor.device.__get__:
            return torch.device("cuda")
        if "device" in kwargs:
            kwargs["device"] = "cpu"
        return func(*args, **kwargs)
