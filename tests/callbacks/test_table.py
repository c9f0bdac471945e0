import pytest
import torch

from sae_lightning.callbacks import RecoveryTable
from sae_lightning.callbacks.recovery_metrics import Problem, RecoveryMetrics
from sae_lightning.callbacks.table import recovery_table
from sae_lightning.data import ActivationBatch
from sae_lightning.modules import Evaluation
from sae_lightning.nn import SAEOutput


def measured(n_concepts: int):
    """Latent 0 fires exactly on concept 0, latent 1 on everything; the reconstruction is perfect."""
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    codes = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    concepts = torch.tensor([0, 0, 1, 1]) if n_concepts else torch.full((4,), -1)
    metrics = RecoveryMetrics(Problem(2, 2, n_concepts, top_n=1, with_similarity=True, discovery_samples=4))
    metrics.update(ActivationBatch(x, concepts), Evaluation(x, SAEOutput(x, codes, codes), {}, x), "val")
    return metrics.compute()


def test_concepts_below_the_bar_stand_in_parentheses():
    lines = recovery_table({"": measured(2)}, ["A", "B"], found_above=0.9, title="SpaDE")
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[0] == "SpaDE"
    assert cells[1] == "1.50"  # six codes over four samples
    assert cells[2] == "0.00e+00"
    assert cells[-2:] == ["1.000", "(0.667)"]  # B: only the latent that fires on everything, F1 2/3
    assert len({len(line) for line in lines}) == 1


def test_unlabelled_data_has_no_columns_of_concepts():
    lines = recovery_table({"a": measured(0), "b": measured(0)}, [], found_above=0.9, title="")
    assert len(lines) == 4
    assert lines[0].count("|") == 7
    assert " - " in lines[2]


@pytest.mark.parametrize("value", [-0.1, 1.5])
def test_bad_bar(value):
    with pytest.raises(ValueError, match=f"found_above must lie between 0 and 1, but is {value}"):
        RecoveryTable(value)
