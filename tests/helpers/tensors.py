"""Tensors: made, measured, and compared bit by bit."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LEADING_SHAPES = ((), (1,), (6,), (2, 3), (2, 1, 3), (0,))


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normals from a generator of their own."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def numpy(x: Tensor) -> Any:
    """A float64 array."""
    return x.detach().double().numpy()


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
                self.numel = max(self.numel, leaf.numel() if leaf.layout == torch.strided else leaf._nnz())
        self.operations.add(str(func))
        return result


def assert_same(actual: Any, expected: Any, where: str = "") -> None:
    """Compare nested dicts, lists and tensors bit by bit."""
    assert type(actual) is type(expected), where
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), f"{where}: {actual} != {expected}"
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for i, pair in enumerate(zip(actual, expected, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif not callable(expected):
        assert actual == expected or (actual != actual and expected != expected), where  # noqa: PLR0124  (NaN)
