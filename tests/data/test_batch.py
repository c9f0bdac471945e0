from typing import Any

import pytest
import torch

from sae_lightning.data import ActivationBatch
from sae_lightning.data.batch import as_batch

X, C = torch.randn(3, 4), torch.tensor([2, 0, -1])
OVERLAPPING = torch.eye(3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("batch", "concepts"),
    [
        (ActivationBatch(X, C), C),
        (X, torch.tensor([-1, -1, -1])),
        ((X,), torch.tensor([-1, -1, -1])),
        ([X], torch.tensor([-1, -1, -1])),
        ((X, C), C),
        ([X, C], C),
        ((X, OVERLAPPING), OVERLAPPING),
    ],
    ids=["batch", "tensor", "tuple of one", "list of one", "tuple of two", "list of two", "overlapping"],
)
def test_accepted_forms(batch: Any, concepts: torch.Tensor) -> None:
    made = as_batch(batch)
    assert isinstance(made, ActivationBatch)
    assert made.activations is X
    assert made.concepts.dtype == concepts.dtype
    assert torch.equal(made.concepts, concepts)


@pytest.mark.parametrize("batch", [None, "x", 3, X.numpy(), {"x": X}, (), [], (X, C, C), (X, [1, 2, 3]), (None, C)])
def test_refused_forms(batch: Any) -> None:
    with pytest.raises(TypeError, match=f"a batch must be .*, but is {type(batch).__name__}$"):
        as_batch(batch)
