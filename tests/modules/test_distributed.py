"""A hundred steps of two processes (DDP, gloo) with half a batch each are those of one process with the whole batch."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Adam

from sae_lightning.callbacks import ResampleDeadLatents
from sae_lightning.modules import Comparison, SAEModule
from tests.helpers.data import BATCH, D_IN, Clusters
from tests.helpers.modules import PRESETS, make
from tests.helpers.processes import on_ranks
from tests.helpers.trainers import fit

pytestmark = pytest.mark.slow

STEPS = 100
OPTIONS: dict[str, dict[str, Any]] = {
    **{name: {} for name in PRESETS},
    "comparison": {},
    "clipped": {"gradient_clip_val": 0.5},
    "accumulated": {"accumulate_grad_batches": 2},
    "resampled": {},
}
RUNS = [*((name, "32-true") for name in OPTIONS), *((name, "64-true") for name in OPTIONS if name not in PRESETS)]


def build(name: str) -> SAEModule:
    if name in PRESETS:
        return make(name)
    torch.manual_seed(1)
    members = {member: partial(preset, optimizer=partial(Adam, lr=1e-2)) for member, preset in PRESETS.items()}
    return Comparison(D_IN, members)


def train(name: str, precision: str, processes: int) -> dict[str, Tensor]:
    """Weights and counters after a run."""
    options: dict[str, Any] = {**OPTIONS[name], "precision": precision}
    if name == "resampled":
        options["callbacks"] = [ResampleDeadLatents(every_n_steps=30, dead_after=3)]
    if processes > 1:
        options |= {"strategy": "ddp", "devices": processes}
    module = build(name)
    fit(module, STEPS, Clusters(25 * processes, batch_size=BATCH // processes), **options)
    return {**module.state_dict(), "samples_seen": torch.tensor(module.samples_seen)}


def rank(number: int, folder: Path) -> None:
    found = {run: train(*run, 2) for run in RUNS}
    torch.save(found, folder / f"{number}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, Tensor]]]:
    """What both processes hold after each run."""
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(2, rank, folder)
    return [torch.load(folder / f"{number}.pt", weights_only=True) for number in (0, 1)]


@pytest.mark.parametrize(("name", "precision"), RUNS)
def test_two_processes_train_as_one(name: str, precision: str, ranks: Any) -> None:
    torch.set_num_threads(1)
    expected = train(name, precision, 1)
    first, second = (found[name, precision] for found in ranks)
    assert first.keys() == second.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value, rtol=0, atol=1e-5, msg=lambda text, key=key: f"{key}: {text}")


def test_latents_were_resampled(ranks: Any) -> None:
    key = "members.sae_topk.sae.decoder.weight"
    resampled, plain = (ranks[0][name, "32-true"][key] for name in ("resampled", "comparison"))
    assert (resampled != plain).any(-1).sum() >= 1
