import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from sae_lightning.modules import Comparison
from tests.helpers.data import BATCH, D_IN, Batches, Clusters, stream
from tests.helpers.modules import D_SAE, PRESETS, make
from tests.helpers.trainers import fit, make_trainer

FIRST = 3 * BATCH  # what standardisation is fitted to in these tests


def batches(bad: int | None = None, value: float = math.nan, n: int = 6) -> list[Tensor]:
    """Batches, one of which holds a bad value at row 5, feature 2."""
    made = [x.clone() for x in stream(Clusters(), n * BATCH).split(BATCH)]
    if bad is not None:
        made[bad][5, 2] = value
    return made


def run(trainer: pl.Trainer, stage: str) -> Any:
    return {"fit": lambda module, loader: trainer.fit(module, loader, []), "validate": trainer.validate}[stage]


@pytest.fixture(params=["alone", "comparison"])
def module(request: pytest.FixtureRequest) -> Any:
    if request.param == "alone":
        return make("spade", n_init_samples=FIRST)
    return Comparison(D_IN, {n: lambda d_in, n=n: make(n, n_init_samples=FIRST) for n in ("spade", "topk")})


@pytest.mark.parametrize("sized", [True, False], ids=["sized", "unsized"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_bad_training_batch(module: Any, value: float, sized: bool) -> None:
    loader = Batches(batches(4, value), sized)
    message = f"must be finite, but batch 4 of the training stream holds {value} at row 5, feature 2"
    trainer = make_trainer(6)
    with pytest.raises(ValueError, match=message):
        trainer.fit(module, train_dataloaders=loader, val_dataloaders=[])
    assert trainer.global_step == 4
    assert all(bool(p.isfinite().all()) for p in module.parameters())


def test_two_infinities_do_not_cancel(module: Any) -> None:
    made = batches(4, math.inf)
    made[4][6, 1] = -math.inf
    with pytest.raises(ValueError, match="batch 4 of the training stream holds inf at row 5, feature 2"):
        make_trainer(6).fit(module, train_dataloaders=Batches(made), val_dataloaders=[])


def test_large_finite_values_pass(module: Any) -> None:
    make_trainer(2).fit(
        module, train_dataloaders=Batches([*batches(n=1), torch.full((3, D_IN), 3e38)]), val_dataloaders=[]
    )


@pytest.mark.parametrize("bad", [0, 2])
def test_a_bad_initial_sample(module: Any, bad: int) -> None:
    with pytest.raises(ValueError, match=f"batch {bad} of the training stream holds nan at row 5, feature 2"):
        make_trainer(6).fit(module, train_dataloaders=Batches(batches(bad)), val_dataloaders=[])
    assert not any(sae.initialized for sae in module.saes().values())


@pytest.mark.parametrize("stage", ["validation", "test", "prediction"])
def test_a_bad_batch_elsewhere(module: Any, stage: str) -> None:
    trainer = make_trainer(1, limit_val_batches=None)
    step = {"validation": trainer.validate, "test": trainer.test, "prediction": trainer.predict}[stage]
    with pytest.raises(ValueError, match=f"batch 1 of the {stage} stream holds nan at row 5, feature 2"):
        step(module, dataloaders=Batches(batches(1)))


def test_a_bad_validation_batch_during_training(module: Any) -> None:
    trainer = make_trainer(6, limit_val_batches=None, num_sanity_val_steps=1)
    with pytest.raises(ValueError, match="batch 3 of the validation stream holds nan at row 5, feature 2"):
        trainer.fit(module, train_dataloaders=Batches(batches()), val_dataloaders=Batches(batches(3)))


@pytest.mark.parametrize("wrong", [D_IN - 1, 1])
def test_data_of_another_size(module: Any, wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"model\.d_in must equal data\.d_in, but they are {D_IN} and {wrong} "):
        fit(module, 1, Clusters(d_in=wrong))


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_batches_of_another_size(module: Any, stage: str) -> None:
    loader, trainer = Batches([torch.randn(BATCH, D_IN - 1)] * 4), make_trainer(1, limit_val_batches=None)
    with pytest.raises(ValueError, match=rf"\b{D_IN}\b.*{D_IN - 1}"):
        run(trainer, stage)(module, loader)


@pytest.mark.parametrize("shape", [(D_IN,), (4, BATCH, D_IN)], ids=["one sample", "sequences"])
@pytest.mark.parametrize("value", [0.5, math.nan], ids=["finite", "nan"])
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_batches_of_another_rank(module: Any, stage: str, shape: tuple[int, ...], value: float) -> None:
    x = torch.randn(shape)
    x.view(-1)[0] = value
    loader, trainer = Batches([x] * 4), make_trainer(1, limit_val_batches=None)
    with pytest.raises(ValueError, match=r"shape|dimensions"):
        run(trainer, stage)(module, loader)


@pytest.mark.parametrize("batch", [{"x": torch.randn(4, D_IN)}, "text", (torch.randn(4, D_IN),) * 3, None])
@pytest.mark.parametrize("initialized", [True, False])
def test_batches_of_another_type(module: Any, batch: Any, initialized: bool) -> None:
    for sae in module.saes().values():
        sae.initialized.fill_(initialized)
    with pytest.raises(TypeError, match=f"a batch must be an ActivationBatch.*, but is {type(batch).__name__}"):
        make_trainer(1).fit(module, train_dataloaders=Batches([batch] * 3), val_dataloaders=[])


def test_no_training_data(module: Any) -> None:
    with pytest.raises(ValueError, match="the training data must hold at least one batch, but it is empty"):
        make_trainer(1).fit(module, train_dataloaders=Batches([], sized=False), val_dataloaders=[])


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.ones(8, D_IN), "standardization needs training samples that differ, but all are equal"),
        (torch.ones(1, D_IN), "standardization needs at least two training samples, but got 1"),
    ],
)
def test_training_data_without_a_scale(x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_trainer(1).fit(make("relu"), train_dataloaders=Batches([x]), val_dataloaders=[])


@pytest.mark.parametrize("name", PRESETS)
def test_wrong_sizes_in_encode_and_decode(name: str) -> None:
    sae = make(name)
    for call in (sae, sae.encode):
        with pytest.raises(ValueError, match=rf"d_in = {D_IN} in their last dimension, but have shape \(3, 5\)"):
            call(torch.randn(3, 5))
    with pytest.raises(ValueError, match=rf"d_sae = {D_SAE} in their last dimension, but have shape \(3, 5\)"):
        sae.decode(torch.randn(3, 5))
