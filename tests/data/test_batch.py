from typing import Any

import pytest
import torch

from sae_lightning.data import ActivationBatch
from sae_lightning.data.batch import as_batch, joined, taken

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


def test_batches_are_joined_and_taken_from_in_all_their_fields():
    batches = [ActivationBatch(X, C, torch.arange(len(X)), 2 * X), ActivationBatch(X + 1, C, torch.arange(len(X)), X)]
    whole = joined(batches)
    assert torch.equal(whole.activations, torch.cat([X, X + 1]))
    assert torch.equal(whole.target, torch.cat([2 * X, X]))
    rows = torch.tensor([len(X), 0])
    some = taken(whole, rows)
    assert torch.equal(some.target, torch.stack([X[0], 2 * X[0]]))
    assert some.positions.tolist() == [0, 0]
    assert torch.equal(taken(ActivationBatch(X, C), slice(1)).activations, X[:1])


def test_batches_of_different_fields_are_not_joined():
    for order in (1, -1):
        with pytest.raises(ValueError, match="all batches must have target, or none, but some do"):
            joined([ActivationBatch(X, C, target=X), ActivationBatch(X, C)][::order])


def test_a_target_that_is_no_tensor_is_refused():
    with pytest.raises(TypeError, match="a batch's target must be a tensor or None, but is list"):
        as_batch(ActivationBatch(X, C, target=[1.0]))
