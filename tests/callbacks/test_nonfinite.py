"""A loss that is no number: the run stops before the weights are spoiled, and keeps the batch."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sae_lightning import Comparison, SpaDE, TopKSAE
from sae_lightning.callbacks import NonfiniteLoss, RunCheckpoint
from sae_lightning.modules import BaseSAE
from sae_lightning.modules.run import NonfiniteError
from sae_lightning.run.checkpoint import read_checkpoint
from tests.helpers.probes import DamagedStream
from tests.helpers.trainers import make_trainer

BAD = 12  # batches before the one whose loss is not finite


class Bursting(BaseSAE):
    """Its loss is not finite for the batch that it is told of."""

    def __init__(self, d_in, value, at=BAD):
        sae = TopKSAE(d_in, 8, k=2)
        super().__init__(
            sae.sae.encoder,
            sae.sae.projection,
            sae.sae.decoder,
            None,
            0.0,
            standardize=True,
            subtract_decoder_bias=False,
            init="unit",
            n_init_samples=16,
        )
        self.left, self.value, self.seen = at, value, []

    def learn(self, x, target=None):
        result = super().learn(x, target)
        self.left -= 1
        self.seen.append({key: tensor.clone() for key, tensor in self.state_dict().items() if "silent" not in key})
        if self.left == -1:
            result.terms["loss"] = result.terms["loss"] * self.value
        return result


def alone(value):
    return Bursting(3, value)


def compared(value, processes=1):
    members = {"whole": lambda d_in: SpaDE(3, 8, n_init_samples=16), "burst": lambda d_in: Bursting(d_in, value)}
    return Comparison(3, members, processes=processes)


MODELS = {
    "alone": alone,
    "compared": compared,
    "side by side": lambda value: compared(value, 2),
}


def fit(module, folder, data=None, **changes):
    trainer = make_trainer(
        30,
        default_root_dir=folder,
        callbacks=[RunCheckpoint(str(folder / "checkpoints"), every_n_steps=5), NonfiniteLoss()],
        **changes,
    )
    trainer.fit(module, data or DamagedStream(bad_batch=-1))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_run_stops_before_the_weights_change(model, value, tmp_path):
    module = MODELS[model](value)
    with pytest.raises(NonfiniteError) as caught:
        fit(module, tmp_path)
    message = str(caught.value)
    path = tmp_path / f"nonfinite-step={BAD + 1}-rank=0.safetensors"
    name = "" if model == "alone" else " for 'burst'"
    assert message.startswith(f"the loss must be finite, but is {value}{name} at step {BAD + 1} (batch {BAD} of")
    assert str(path) in message
    newest = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert newest["global_step"] == 10
    assert all(tensor.isfinite().all() for tensor in newest["state_dict"].values())
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    burst = module.saes().get("burst", module)
    if model != "side by side":  # which learns in another process
        for key, tensor in burst.seen[-1].items():
            assert torch.equal(tensor, burst.state_dict()[key]), key
    batch = DamagedStream(bad_batch=-1).split("train")[torch.arange(16 * BAD, 16 * (BAD + 1))]
    found = load_file(path)
    assert torch.equal(found["activations"], batch.activations)
    assert torch.equal(found["concepts"], batch.concepts)
    with safe_open(path, "pt") as file:
        facts = file.metadata()
    assert facts["step"] == str(BAD + 1)
    assert facts["batch"] == str(BAD)
    assert facts["rank"] == "0"
    assert facts["members"] == ("" if model == "alone" else "burst")
    assert str(value) in facts["losses"]


class Outlier(DamagedStream):
    """One value of one batch is far larger than all others, and its square overflows."""

    def make_split(self, split):
        dataset = super().make_split(split)
        dataset.activations[16 * BAD + 5, 2] = -1e30
        return dataset


@pytest.mark.parametrize(("model", "value"), [(SpaDE, "nan"), (partial(TopKSAE, k=2), "inf")])
def test_an_outlier_that_makes_the_loss_overflow_is_named(model, value, tmp_path):
    words = rf"is {value} at step 13 .*, whose largest activation has magnitude 1e\+30\)"
    with pytest.raises(NonfiniteError, match=words):
        fit(model(3, 8, n_init_samples=16), tmp_path, data=Outlier(bad_batch=-1))


def test_accumulated_gradients_count_the_step_that_they_belong_to(tmp_path):
    with pytest.raises(NonfiniteError, match=f"at step 7 \\(batch {BAD + 1} of its epoch"):
        fit(Bursting(3, math.nan, BAD + 1), tmp_path, accumulate_grad_batches=2)
    assert (tmp_path / "nonfinite-step=7-rank=0.safetensors").is_file()


class Overflowing(Bursting):
    """A gradient of its weights, not its loss, is infinite once; the step is skipped, as a loss scaler does."""

    def __init__(self):
        super().__init__(3, 1.0)
        self.skipped = 0

    def on_before_optimizer_step(self, optimizer):
        if self.left == -1:
            self.sae.encoder.weight.grad[0, 0] = math.inf
        self.skipped += not all(p.grad.isfinite().all() for p in self.parameters() if p.grad is not None)
        if self.left == -1:
            self.zero_grad()


def test_a_gradient_that_overflows_does_not_stop_the_run(tmp_path):
    module = Overflowing()
    fit(module, tmp_path)
    assert module.skipped == 1
    assert module.trainer.global_step == 30
    assert not list(tmp_path.glob("nonfinite-*"))


class Device(NonfiniteLoss):
    """Takes the way of an accelerator on a CPU, which is never behind."""

    def on_before_backward(self, trainer, pl_module, loss):
        losses = pl_module.losses
        finite = torch.stack(list(losses.values())).isfinite().all()
        self._pending = SimpleNamespace(synchronize=lambda: None), finite, self._facts(trainer), losses


@pytest.mark.parametrize("bad", [9, 12, 29])
def test_an_answer_that_comes_a_step_later_still_spares_the_checkpoint(bad, tmp_path):
    """The last batch before a checkpoint is due, another one, and the last of all."""
    trainer = make_trainer(
        30,
        default_root_dir=tmp_path,
        callbacks=[RunCheckpoint(str(tmp_path / "checkpoints"), every_n_steps=5), Device()],
    )
    with pytest.raises(NonfiniteError, match=f"is nan at step {bad + 1} "):
        trainer.fit(Bursting(3, math.nan, bad), DamagedStream(bad_batch=-1))
    newest = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert newest["global_step"] == bad // 5 * 5
    assert all(tensor.isfinite().all() for tensor in newest["state_dict"].values())
    batch = DamagedStream(bad_batch=-1).split("train")[torch.arange(16 * bad, 16 * (bad + 1))]
    assert torch.equal(
        load_file(tmp_path / f"nonfinite-step={bad + 1}-rank=0.safetensors")["activations"], batch.activations
    )


def test_a_folder_that_takes_no_file_does_not_hide_the_reason(tmp_path):
    (tmp_path / f"nonfinite-step={BAD + 1}-rank=0.safetensors").mkdir()
    with pytest.raises(NonfiniteError, match=r"the loss must be finite.*the batch cannot be written to"):
        fit(Bursting(3, math.nan), tmp_path)
