"""Held-out batches say which samples of their split they hold, whatever deals them."""

import numpy as np
import pytest
import torch

from sae_lightning.data import ActivationBatch, ActivationDataModule, SeparabilityDataModule, TensorDataModule
from sae_lightning.data.batch import as_batch


@pytest.fixture(params=["tensor", "separability"])
def data(request, tmp_path) -> ActivationDataModule:
    if request.param == "separability":
        return SeparabilityDataModule(n_val_per_concept=5, n_test_per_concept=5, eval_batch_size=8, seed=0)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((300, 4)).astype(np.float32))
    return TensorDataModule(str(tmp_path / "x.npy"), batch_size=16, eval_batch_size=8, seed=0)


@pytest.mark.parametrize("world", [1, 2])
def test_positions_are_those_of_the_split(data, world, monkeypatch):
    for loader, split in (("val", "val"), ("test", "test"), ("predict", "test")):
        samples, seen = data.split(split), []
        for rank in range(world):
            monkeypatch.setattr(data, "_processes", lambda rank=rank: (rank, world))
            for batch in getattr(data, f"{loader}_dataloader")():
                assert batch.positions.dtype == torch.int64
                assert torch.equal(samples.activations[batch.positions], batch.activations)
                assert torch.equal(samples.concepts[batch.positions], batch.concepts)
                seen += batch.positions.tolist()
        assert sorted(seen) == list(range(len(samples)))


def test_training_batches_have_none(data):
    assert next(iter(data.train_dataloader())).positions is None


def test_batches_of_other_forms_have_none():
    x = torch.randn(3, 4)
    for batch in (x, (x,), (x, torch.zeros(3).long())):
        assert as_batch(batch).positions is None
    given = ActivationBatch(x, torch.zeros(3).long(), torch.arange(3))
    assert as_batch(given) is given
