"""What is logged of an evaluation is the mean over all samples, on one, two and three processes.

An odd number of samples leaves the processes with different shares; fewer samples than processes leave one with none.
"""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from sae_lightning.callbacks import ConceptRecovery, FeaturesReport, GrammarReport, LatentMeaning
from sae_lightning.data import ImageDataModule, SentenceDataModule
from sae_lightning.data.loading import ActivationDataset
from sae_lightning.modules import Comparison, ReLUSAE, SpaDE, TopKSAE
from sae_lightning.modules.means import SampleMean
from sae_lightning.subjects import LanguageModel, VisionModel
from tests.helpers.data import Clusters
from tests.helpers.images import write_mnist_like
from tests.helpers.language import ENGLISH
from tests.helpers.processes import on_ranks
from tests.helpers.trainers import quiet_trainer

COUNTS = (1, 2, 121, 123)
PROCESSES = (1, 2, 3)


class FewClusters(Clusters):
    """Five concepts in 6 dimensions, with as many samples for validation and test as are asked for."""

    def __init__(self, n, eval_batch_size):
        super().__init__()
        self.n_held_out, self.eval_batch_size = n, eval_batch_size

    def make_split(self, split):
        whole = super().make_split(split)
        if split == "train":
            return whole
        mixed = torch.randperm(len(whole), generator=torch.Generator().manual_seed(1))[: self.n_held_out]
        return ActivationDataset(*whole[mixed][:2])


def saes(n, folder):
    torch.manual_seed(0)
    members = {
        "relu": partial(ReLUSAE, d_sae=24, gamma=0.1),
        "topk": partial(TopKSAE, d_sae=24, k=5),
        "spade": partial(SpaDE, d_sae=24),
    }
    return Comparison(6, members), FewClusters(n, 40), [ConceptRecovery(), LatentMeaning()]


def language(n, folder):
    torch.manual_seed(0)
    text = Path(ENGLISH).read_text()
    model = LanguageModel(text, width=8, n_layers=1, n_heads=2, n_positions=32)
    data = SentenceDataModule(ENGLISH, max_length=20, n_val=n, n_test=n, eval_batch_size=40, seed=1)
    return model, data, [GrammarReport(n_samples=20)]


def vision(n, folder):
    torch.manual_seed(0)
    model = VisionModel(8, patch_size=4, width=16, n_layers=1, n_heads=2, hidden=16, projected=8)
    data = ImageDataModule(str(folder), n_val=n, batch_size=16, eval_batch_size=40, seed=1)
    data.split("test").images = data.split("test").images[:n]
    data.split("test").concepts = data.split("test").concepts[:n]
    return model, data, [FeaturesReport(n_labelled=64, k=5)]


MAKERS = {"SAEs": saes, "language": language, "vision": vision}


def measure(folder: Path, processes: int) -> dict:
    """Every logged value, by what is evaluated, number of samples, stage and key."""
    found = {}
    for name, make in MAKERS.items():
        for n in COUNTS:
            module, data, callbacks = make(n, folder / "mnist")
            trainer = quiet_trainer(
                callbacks,
                devices=processes,
                strategy="ddp" if processes > 1 else "auto",
                logger=CSVLogger(str(folder), version=f"{name}-{n}-{processes}"),
            )
            for stage in ("validate", "test"):
                getattr(trainer, stage)(module, data, verbose=False)
                for key, value in trainer.callback_metrics.items():
                    found[f"{name} {n} {stage} {key}"] = float(value)
    return found


def rank(number: int, folder: Path, processes: int) -> None:
    found = measure(folder, processes)
    (folder / f"{processes}-{number}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("means")
    write_mnist_like(folder / "mnist", n_train=256, n_test=128)
    return folder


@pytest.fixture(scope="module")
def alone(folder):
    torch.set_num_threads(1)
    return measure(folder, 1)


@pytest.mark.slow
@pytest.mark.parametrize("processes", PROCESSES[1:])
def test_every_logged_value_is_that_of_one_process(processes, folder, alone):
    on_ranks(processes, rank, folder, processes)
    assert {key.split()[0] for key in alone} == set(MAKERS)
    assert sum("relu/" in key for key in alone) > 2 * len(COUNTS) * 20
    for number in range(processes):
        found = json.loads((folder / f"{processes}-{number}.json").read_text())
        assert found.keys() == alone.keys()
        for key, value in alone.items():
            assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True), f"{key} on rank {number}"


def test_losses_and_l0_are_those_of_all_samples_at_once(alone):
    """By a formula of their own: one batch, in float64."""
    module, data, _ = saes(123, None)
    x = data.split("test").activations
    for name, sae in module.saes().items():
        out = sae.double()(x.double())
        mse = (x - out.x_hat).square().sum(-1).mean().item()
        l0 = (out.codes.abs() > 1e-6).sum().item() / 123
        assert alone[f"SAEs 123 test {name}/test/mse"] == pytest.approx(mse, rel=1e-6), name
        assert alone[f"SAEs 123 test {name}/test/l0"] == pytest.approx(l0, rel=1e-9), name


def test_a_mean_is_weighted_by_the_samples_of_batches():
    mean = SampleMean()
    mean.update(torch.tensor(2.0), 3)
    mean.update(torch.tensor(math.nan), 0)
    mean.update(torch.tensor(10.0), 1)
    assert mean.compute().item() == 4.0
    assert mean.compute().dtype == torch.float64
    mean.reset()
    mean.update(torch.tensor(math.nan), 2)
    mean.update(torch.tensor(1.0), 2)
    assert mean.compute().isnan()
