"""What runs in half precision, per architecture, and what does not: bf16-mixed, 16-mixed and bf16-true."""

import math
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from sae_lightning import load_sae
from sae_lightning.backends.sparse import SparseCodes
from sae_lightning.data.loading import ActivationDataset
from sae_lightning.modules import Comparison, ReLUSAE, SpaDE
from tests.helpers.data import Clusters
from tests.helpers.modules import PRESETS, make
from tests.helpers.tensors import assert_same
from tests.helpers.trainers import fit, make_trainer

D_IN = 32  # products with less than 17 features never run in half precision
NAMES = list(PRESETS)
MATRICES = ("encoder.weight", "decoder.weight")


def float16_on_cpu(init_scale: float = 16.0) -> dict[str, Any]:
    """What the Trainer does with 16-mixed on a GPU. (On a CPU it takes bf16-mixed instead.)"""
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=init_scale))]}


PRECISIONS: dict[str, Any] = {
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "16-mixed": float16_on_cpu,
    "bf16-true": lambda: {"precision": "bf16-true"},
}


class Spy(pl.Callback):
    """Keeps the dtype of every gradient, and the losses."""

    def __init__(self) -> None:
        self.grads: dict[str, torch.dtype] = {}
        self.losses: list[float] = []

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Any) -> None:
        self.grads |= {name: p.grad.dtype for name, p in pl_module.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))


def values(codes: Tensor | SparseCodes) -> Tensor:
    return codes.values if isinstance(codes, SparseCodes) else codes


@pytest.mark.parametrize("sparsely", [True, False], ids=["sparse", "dense"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_only_products_and_matrices_are_in_half_precision(
    name: str, precision: str, sparsely: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    sae = make(name, d_in=D_IN, chunk_size=5 if sparsely else None)
    learned, learn = [], sae.learn
    monkeypatch.setattr(sae, "learn", lambda *batch: learned.append(learn(*batch)) or learned[-1])
    spy = Spy()
    trainer = fit(
        sae,
        4,
        Clusters(d_in=D_IN),
        callbacks=[spy],
        gradient_clip_val=0.5,
        log_every_n_steps=1,
        **PRECISIONS[precision](),
    )
    assert trainer.precision == precision
    assert len(learned) == 4
    for x, out, terms, _ in learned:
        assert isinstance(out.codes, SparseCodes) == sparsely
        for tensor in (x, out.x_hat, values(out.codes), values(out.pre_codes), *terms.values()):
            assert tensor.dtype == torch.float32
    optimizer = trainer.optimizers[0]
    for key, parameter in sae.named_parameters():
        half = precision == "bf16-true" and key.endswith(MATRICES)
        wanted = torch.bfloat16 if half else torch.float32
        assert parameter.dtype == spy.grads[key] == wanted, key
        state = [s for s in optimizer.state[parameter].values() if isinstance(s, Tensor)]
        assert state
        assert {s.dtype for s in state if s.shape == parameter.shape} == {wanted}, key
    assert {b.dtype for b in sae.buffers() if b.is_floating_point()} == {torch.float32}
    # the losses are those of float32, up to roundings that four steps add up
    exact = make(name, d_in=D_IN, chunk_size=5 if sparsely else None)
    exact_spy = Spy()
    fit(exact, 4, Clusters(d_in=D_IN), callbacks=[exact_spy], gradient_clip_val=0.5)
    assert spy.losses != exact_spy.losses
    tolerance = {"bf16-mixed": 2**-5, "16-mixed": 2**-8, "bf16-true": 2**-4}[precision]
    assert spy.losses == pytest.approx(exact_spy.losses, rel=tolerance)


# -- bf16-true --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_conversion_leaves_everything_small_as_it_is(name: str, dtype: torch.dtype) -> None:
    sae = make(name, d_in=D_IN)
    fit(sae, 3, Clusters(d_in=D_IN))
    before = {key: value.clone() for key, value in sae.state_dict().items()}
    sae.to(dtype)
    for key, value in sae.state_dict().items():
        if key.endswith(MATRICES):
            assert_same(value, before[key].to(dtype), key)
        else:
            assert_same(value, before[key], key)
    assert {value.dtype for value in sae.double().state_dict().values() if value.is_floating_point()} == {torch.float64}


@pytest.mark.parametrize("name", NAMES)
def test_bf16_true_goes_on_bit_by_bit_and_loads(name: str, tmp_path: Any) -> None:
    options = {"precision": "bf16-true", "gradient_clip_val": 0.5}
    whole = fit(make(name, d_in=D_IN), 8, Clusters(d_in=D_IN), **options)
    path = tmp_path / "half.ckpt"
    fit(make(name, d_in=D_IN), 4, Clusters(d_in=D_IN), **options).save_checkpoint(path)
    # a resumed run's data goes on where it stood, as in tests/test_resume.py
    resumed = make(name, seed=2, d_in=D_IN)
    trainer = fit(resumed, 8, Clusters(d_in=D_IN), ckpt_path=path, **options)
    assert_same(resumed.state_dict(), whole.lightning_module.state_dict())
    assert_same(trainer.optimizers[0].state_dict(), whole.optimizers[0].state_dict())

    trainer.save_checkpoint(tmp_path / "whole.ckpt")
    loaded = load_sae(tmp_path / "whole.ckpt")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    x = next(iter(Clusters(d_in=D_IN).train_dataloader())).activations
    with torch.no_grad():
        assert torch.equal(loaded.sae.encoder.weight, resumed.sae.encoder.weight.float())
        assert resumed(x).x_hat.dtype == torch.float32
        torch.testing.assert_close(resumed.decode(loaded.encode(x)), loaded(x).x_hat, rtol=2**-6, atol=0.1)


def test_counts_and_means_are_exact_in_bf16_true() -> None:
    # about 300 of 600 latents fire, more than bfloat16 can count; means over batches are as exact
    sae = ReLUSAE(D_IN, 600)
    data = Clusters(steps_per_epoch=7, d_in=D_IN)
    trainer = fit(sae, 2, data, precision="bf16-true", limit_val_batches=1.0)
    found = trainer.validate(sae, data, verbose=False)[0]
    batches = [batch.activations for batch in data.val_dataloader()]
    with torch.no_grad():
        codes = torch.cat([sae.encode(x.bfloat16()) for x in batches])
        errors = torch.cat([sae.evaluate(x.bfloat16()).x - sae.evaluate(x.bfloat16()).out.x_hat for x in batches])
    count = (codes > 1e-6).sum(-1).double().mean().item()
    assert count > 257
    assert found["val/l0"] == pytest.approx(count, rel=1e-6)
    assert found["val/mse"] == pytest.approx(errors.double().square().sum(-1).mean().item(), rel=1e-5)


def test_inputs_far_from_zero_are_warned_of_in_bf16_true_only() -> None:
    class Far(Clusters):
        def make_split(self, split: Any) -> ActivationDataset:
            dataset = super().make_split(split)
            return ActivationDataset(dataset.activations + 1000, dataset.concepts)

    with pytest.warns(UserWarning, match=r"rounds raw activations by \d+\.\d% of their spread"):
        fit(make("relu", d_in=D_IN), 1, Far(d_in=D_IN), precision="bf16-true")
    with pytest.warns() as caught:  # noqa: PT031
        fit(make("relu", d_in=D_IN), 1, Far(d_in=D_IN), precision="bf16-mixed")
        fit(make("relu", d_in=D_IN), 1, Clusters(d_in=D_IN), precision="bf16-true")
    assert not [w for w in caught if "rounds raw activations" in str(w.message)]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_processes_find_the_same_in_half_precision(precision: str) -> None:
    found = []
    for processes in (1, 2):
        members = {name: partial(make, name) for name in ("spade", "jumprelu", "topk")}
        pl.seed_everything(0, verbose=False)
        comparison = Comparison(D_IN, {n: partial(_made, m) for n, m in members.items()}, processes)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        fit(comparison, 5, Clusters(d_in=D_IN), precision=precision, gradient_clip_val=0.5)
        torch.set_num_threads(threads)
        found.append(comparison.state_dict())
    assert_same(*found)


def _made(make_sae: Any, d_in: int) -> Any:
    return make_sae(d_in=d_in)


# -- float16 ----------------------------------------------------------------------------------------------------------


# schedules go on where the scaler skips a step
@pytest.mark.filterwarnings("ignore:.*`lr_scheduler.step.*` before `optimizer.step.*`")
@pytest.mark.parametrize("name", NAMES)
def test_the_scaler_finds_its_scale_and_training_goes_on(name: str) -> None:
    # gradients of the dense products overflow at first: the scaler skips such steps, and loss and weights stay finite
    sae, spy = make(name, d_in=D_IN), Spy()
    trainer = fit(sae, 20, Clusters(d_in=D_IN), callbacks=[spy], gradient_clip_val=0.5, **float16_on_cpu(2.0**24))
    assert trainer.precision_plugin.scaler.get_scale() < 2.0**24
    assert all(map(math.isfinite, spy.losses))
    assert spy.losses[-1] < spy.losses[0]
    assert all(bool(p.isfinite().all()) for p in sae.parameters())


def test_16_true_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trainer\.precision must not be '16-true'"):
        fit(make("relu", d_in=D_IN), 1, Clusters(d_in=D_IN), precision="16-true")


def test_16_mixed_is_bf16_mixed_on_a_cpu() -> None:
    with pytest.warns(UserWarning, match="Using `precision='bf16-mixed'` instead"):
        trainer = make_trainer(1, precision="16-mixed")
    assert trainer.precision == "bf16-mixed"


class _Outliers(Clusters):
    """One sample is a few thousand times as long as the others."""

    def make_split(self, split: Any) -> ActivationDataset:
        dataset = super().make_split(split)
        dataset.activations[300] *= 5000
        return dataset


@pytest.mark.parametrize("name", ["spade", "relu"])
def test_an_overflow_of_float16_is_named(name: str) -> None:
    sae = make(name, d_in=D_IN, n_init_samples=24, standardize=False)
    with torch.no_grad():
        sae.sae.encoder.weight.mul_(100)
    with pytest.raises(ValueError, match="float16's largest number, 65504"):
        fit(sae, 25, _Outliers(d_in=D_IN), log_every_n_steps=1, **float16_on_cpu())
    sae = make(name, d_in=D_IN, n_init_samples=24, standardize=False)
    fit(sae, 25, _Outliers(d_in=D_IN), gradient_clip_val=1.0, precision="bf16-mixed")
    assert all(bool(p.isfinite().all()) for p in sae.parameters())


def test_members_train_in_turn_where_the_loss_is_scaled() -> None:
    comparison = Comparison(D_IN, {n: partial(SpaDE, d_sae=24) for n in "ab"}, processes=2)
    with pytest.warns(UserWarning, match="members train in turn"):
        fit(comparison, 1, Clusters(d_in=D_IN), **float16_on_cpu())
