"""Figures of the data's geometry: when they are drawn, and of which SAEs."""

import pytest
import torch

from sae_lightning import Comparison, SpaDE, TensorDataModule, TopKSAE
from sae_lightning.callbacks import ConceptRecovery, GeometryFigures
from sae_lightning.run.loggers import RunCSVLogger
from tests.helpers.trainers import quiet_trainer


def run(folder, d_in=4, labelled=True, **arguments):
    """Test an untrained comparison of two; the figures that it leaves."""
    generator = torch.Generator().manual_seed(0)
    torch.save(torch.randn(40, d_in, generator=generator), folder / "x.pt")
    torch.save(torch.randint(2, (40,), generator=generator), folder / "y.pt")
    labels = {"labels": str(folder / "y.pt")} if labelled else {}
    data = TensorDataModule(str(folder / "x.pt"), batch_size=4, **labels)
    members = {"spade": lambda d: SpaDE(d, 6, lambda_init=1.0), "topk": lambda d: TopKSAE(d, 6, k=2)}
    logger = RunCSVLogger(str(folder / "run"))
    callbacks = [ConceptRecovery(), GeometryFigures(**arguments)]
    quiet_trainer(callbacks, logger=logger).test(Comparison(d_in, members), data, verbose=False)
    figures = folder / "run" / "figures"
    return {str(path.relative_to(figures)) for path in figures.rglob("*.png")}


def test_labelled_activations_are_drawn_with_each_sae(tmp_path):
    assert run(tmp_path) == {
        "test/singular_values.png",
        "spade/test/principal_components.png",
        "topk/test/principal_components.png",
    }


def test_of_many_saes_only_the_data_are_drawn(tmp_path):
    assert run(tmp_path, max_saes=1) == {"test/singular_values.png"}


@pytest.mark.parametrize("changes", [{"d_in": 2}, {"labelled": False}])
def test_the_plane_and_unlabelled_data_are_left_out(tmp_path, changes):
    assert run(tmp_path, **changes) == set()
