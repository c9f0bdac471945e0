import numpy as np
import pytest
import torch
from torch.autograd import gradcheck

from sae_lightning.nn import Decoder
from tests.helpers.tensors import LEADING_SHAPES, numpy, randn


def decoder(bias: bool = True, unit_norm: bool = False) -> Decoder:
    module = Decoder(4, 6, bias=bias, unit_norm=unit_norm).double()
    with torch.no_grad():
        module.weight.copy_(2 * randn(6, 4, seed=1))
        if bias:
            module.bias.copy_(randn(4, seed=2))
    return module


@pytest.mark.parametrize("leading", LEADING_SHAPES, ids=str)
@pytest.mark.parametrize("unit_norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_decoder(bias: bool, unit_norm: bool, leading: tuple[int, ...]) -> None:
    module = decoder(bias, unit_norm)
    codes = randn(*leading, 6).relu()
    actual = module(codes)
    assert actual.shape == (*leading, 4)
    for at in np.ndindex(*leading):
        expected = numpy(module.bias) if bias else np.zeros(4)
        for i in range(6):
            atom = numpy(module.weight[i])
            if unit_norm:
                atom = atom / (np.linalg.norm(atom) + 1e-6)
            expected = expected + codes[at][i].item() * atom
        np.testing.assert_allclose(numpy(actual[at]), expected, rtol=1e-12, atol=1e-12)


def test_combine_leaves_the_bias_out() -> None:
    module = decoder()
    codes = randn(3, 6)
    torch.testing.assert_close(module.combine(codes) + module.bias, module(codes), rtol=1e-14, atol=1e-14)


def test_atoms() -> None:
    assert torch.equal(decoder().atoms, decoder().weight)
    module = decoder(unit_norm=True)
    torch.testing.assert_close(module.atoms.norm(dim=1), torch.ones(6, dtype=torch.float64), rtol=0, atol=1e-5)
    assert (module.weight.norm(dim=1) - 1).abs().min() > 1e-3  # the weight itself is left as it is


@pytest.mark.parametrize("unit_norm", [True, False])
def test_gradient(unit_norm: bool) -> None:
    module = decoder(unit_norm=unit_norm)

    def run(codes: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(module, {"weight": weight, "bias": bias}, codes)

    assert gradcheck(run, (randn(3, 6).requires_grad_(), module.weight, module.bias))


def test_a_vanishing_atom_stays_finite() -> None:
    module = Decoder(4, 6, unit_norm=True)
    module(torch.ones(2, 6)).sum().backward()
    assert module.weight.grad.isfinite().all()
    assert torch.equal(module.atoms, torch.zeros(6, 4))


def test_parameters() -> None:
    assert {name: tuple(p.shape) for name, p in Decoder(3, 5).named_parameters()} == {"weight": (5, 3), "bias": (3,)}
    assert [name for name, _ in Decoder(3, 5, bias=False).named_parameters()] == ["weight"]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((0, 4), "d_out must be at least 1, but is 0"),
        ((3, -1), "d_sae must be at least 1, but is -1"),
    ],
)
def test_bad_sizes(sizes: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Decoder(*sizes)
