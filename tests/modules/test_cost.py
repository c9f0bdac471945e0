from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .helpers import PRESETS, make

BATCH, D_IN, D_SAE = 64, 24, 96


class LargestTensor(TorchDispatchMode):
    """Remembers the largest result of any operation, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0
        self.operations: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        self.operations.add(str(func))
        return result


def step(sae: Any, x: torch.Tensor) -> LargestTensor:
    with LargestTensor() as largest:
        sae.learn(x).terms["loss"].backward()
    return largest


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "with dead latents"])
@pytest.mark.parametrize("name", PRESETS)
def test_nothing_is_larger_than_codes_or_weights(name: str, dead: bool) -> None:
    sae = make(name, d_in=D_IN, d_sae=D_SAE, l0_init=8) if "spade" in name else make(name, d_in=D_IN, d_sae=D_SAE)
    x = 3 + 2 * torch.randn(BATCH, D_IN)
    sae.initialize(x)
    if dead:
        sae.sae.batches_silent.fill_(1000)
    largest = step(sae, x)
    assert any("mm" in operation for operation in largest.operations)
    assert all(p.grad is not None for p in sae.parameters())  # the backward pass was seen, too
    assert BATCH * D_SAE <= largest.numel <= max(BATCH * D_SAE, D_SAE * D_IN, BATCH * D_IN)


def test_the_check_sees_large_tensors_forward_and_backward() -> None:
    x, w = torch.randn(BATCH, D_IN), torch.randn(D_SAE, D_IN, requires_grad=True)
    with LargestTensor() as largest:
        loss = (x[:, None] - w).square().sum()
    assert largest.numel == BATCH * D_SAE * D_IN
    with LargestTensor() as largest:
        loss.backward()
    assert largest.numel == BATCH * D_SAE * D_IN
