"""Latents sharded over two processes (gloo) train as on one process, and each process holds half of them."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.optim import Adam

from sae_lightning.callbacks import ResampleDeadLatents
from sae_lightning.modules import Comparison, SAEModule, load_sae
from sae_lightning.nn.rows import full_tensor, local
from tests.helpers.data import BATCH, D_IN, Clusters
from tests.helpers.modules import PRESETS, make
from tests.helpers.processes import on_ranks
from tests.helpers.trainers import fit

pytestmark = pytest.mark.slow

STEPS = 40
WAYS = {"latents": (1, 2), "fsdp": (2, 1)}  # data-parallel and tensor-parallel size
RUNS = [*PRESETS, "comparison", "resampled"]


def build(name: str) -> SAEModule:
    if name in PRESETS:
        return make(name)
    torch.manual_seed(1)
    members = {member: partial(preset, optimizer=partial(Adam, lr=1e-2)) for member, preset in PRESETS.items()}
    return Comparison(D_IN, members)


class Watch(pl.Callback):
    """Notes the gradients of the first step."""

    def __init__(self) -> None:
        self.grads: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if trainer.global_step == 0:
            self.grads = {k: full_tensor(p.grad).clone() for k, p in pl_module.named_parameters() if p.grad is not None}


def train(name: str, way: str | None, folder: Path | None = None) -> dict[str, Any]:
    """Weights, counters and the first gradients of a run; with `folder`, its checkpoint is kept."""
    watch = Watch()
    options: dict[str, Any] = {"callbacks": [watch], "gradient_clip_val": 0.5}
    if name == "resampled":
        options["callbacks"].append(ResampleDeadLatents(every_n_steps=30, dead_after=3))
    processes = 1
    if way is not None:
        data, latents = WAYS[way]
        processes = data
        strategy = ModelParallelStrategy(data, latents, save_distributed_checkpoint=False)
        options |= {"strategy": strategy, "devices": 2}
    module = build(name)
    trainer = fit(module, STEPS, Clusters(25 * processes, batch_size=BATCH // processes), **options)
    if folder is not None:
        trainer.save_checkpoint(folder / f"{name}.ckpt")
    state = {k: full_tensor(v).clone() for k, v in module.state_dict().items()}
    held = sum(local(p).numel() for p in module.parameters() if p.ndim)
    moments = sum(
        local(value).numel()
        for o in getattr(trainer.optimizers[0], "optimizers", {"": trainer.optimizers[0]}).values()
        for s in o.state.values()
        for value in s.values()
        if isinstance(value, Tensor) and value.ndim
    )
    return {"state": state, "grads": watch.grads, "held": held, "moments": moments, "seen": module.samples_seen}


def rank(number: int, folder: Path) -> None:
    found = {}
    for way in WAYS:
        (folder / way).mkdir(exist_ok=True)
        found |= {(name, way): train(name, way, folder / way) for name in RUNS}
    torch.save(found, folder / f"{number}.pt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What both processes hold after each run, and its checkpoints."""
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(2, rank, folder)
    return folder


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[dict[tuple[str, str], dict[str, Any]]]:
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in (0, 1)]


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    return {name: train(name, None) for name in RUNS}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(name: str, way: str, ranks: Any, alone: Any) -> None:
    for found in (result[name, way] for result in ranks):
        expected = alone[name]
        assert found["seen"] == expected["seen"]
        for kind in ("state", "grads"):
            assert found[kind].keys() == expected[kind].keys()
            for key, value in expected[kind].items():
                torch.testing.assert_close(
                    found[kind][key], value, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}"
                )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PRESETS)
def test_each_process_holds_half(name: str, way: str, ranks: Any, alone: Any) -> None:
    expected = alone[name]
    for what in ("held", "moments"):
        shared = 2 * D_IN if what == "moments" else D_IN  # the decoder's bias, which all hold where latents are sharded
        for result in ranks:
            assert result[name, way][what] <= expected[what] / 2 + shared


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", PRESETS)
def test_one_process_loads_the_checkpoint(name: str, way: str, folder: Path, ranks: Any) -> None:
    loaded = load_sae(folder / way / f"{name}.ckpt").state_dict()
    for key, value in ranks[0][name, way]["state"].items():
        assert torch.equal(loaded[key], value), key


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["spade", "topk"])
def test_one_process_goes_on_from_the_checkpoint(name: str, way: str, folder: Path) -> None:
    """Optimizer included: the next steps are those of a run that one process made from its start."""
    torch.set_num_threads(1)
    resumed, whole_run = make(name, seed=3), make(name)
    fit(resumed, 2 * STEPS, Clusters(25), gradient_clip_val=0.5, ckpt_path=folder / way / f"{name}.ckpt")
    fit(whole_run, 2 * STEPS, Clusters(25), gradient_clip_val=0.5)
    for key, value in whole_run.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[key], value, rtol=0, atol=1e-4)
