import math
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from sae_lightning.data import ActivationBatch, SeparabilityDataModule
from sae_lightning.nn import Standardizer

pytestmark = pytest.mark.usefixtures("global_rng")

SMALL: dict[str, Any] = {"n_per_concept": 200, "n_val_per_concept": 30, "n_test_per_concept": 20, "batch_size": 64}


def points(data: SeparabilityDataModule, split: Any = "val") -> torch.Tensor:
    return data.split(split).activations


def stream(data: SeparabilityDataModule) -> torch.Tensor:
    return torch.cat([batch.activations for batch in data.train_dataloader()])


def test_defaults_are_the_papers() -> None:
    data = SeparabilityDataModule()
    assert (data.d_in, data.n_concepts) == (2, 6)
    assert data.concept_names == ["C0", "C1", "C2", "C3", "C4", "C5"]
    assert (data.batch_size, data.eval_batch_size) == (512, 6000)
    assert len(data.train_dataloader()) == 6 * 700_000 // 512 == 8203
    assert [len(data.split(split).concepts) for split in ("val", "test")] == [6_000, 6_000]  # type: ignore[arg-type]
    for i, center in enumerate(data.centers):
        radius, angle = (1.5, 0.5)[i % 2], math.radians(60 * i)
        wanted = torch.tensor([radius * math.cos(angle), radius * math.sin(angle)])
        torch.testing.assert_close(center, wanted, rtol=0, atol=1e-6)
    assert data.std.square() == pytest.approx(torch.full((6, 2), 2**-4.5 / 2 + 1e-6), rel=1e-5)


def test_counts() -> None:
    data = SeparabilityDataModule(**SMALL)
    counts = {"val": 30, "test": 20}
    split: Any
    for split, n in counts.items():
        assert points(data, split).shape == (6 * n, 2)
        assert data.split(split).concepts.bincount().tolist() == [n] * 6
        assert data.split(split).concepts.dtype == torch.int64
    assert len(data.train_dataloader()) == 6 * 140 // 64
    assert [len(b.concepts) for b in SeparabilityDataModule(**SMALL, eval_batch_size=100).val_dataloader()] == [100, 80]
    assert sum(len(b.concepts) for b in data.test_dataloader()) == 120
    assert all(isinstance(b, ActivationBatch) for b in data.predict_dataloader())


def test_concepts_have_their_centers_and_variances() -> None:
    data = SeparabilityDataModule(n_per_concept=30_000, n_val_per_concept=8_000, seed=1)
    x = points(data).view(6, -1, 2)
    # deviations of a mean and of a variance over 8,000 draws: 0.0017 and 0.0004
    torch.testing.assert_close(x.mean(1), data.centers, rtol=0, atol=0.006)
    torch.testing.assert_close(x.var(1), torch.full((6, 2), 2**-4.5 / 2 + 1e-6), rtol=0, atol=0.0012)
    correlation = torch.stack([torch.corrcoef(concept.T)[0, 1] for concept in x])
    assert correlation.abs().max() < 0.04


def test_standardised_as_in_the_paper() -> None:
    data = SeparabilityDataModule(n_per_concept=100_000, n_val_per_concept=29_000, seed=1)
    standardizer = Standardizer(2)
    standardizer.fit(points(data))
    x = standardizer(points(data)).view(6, -1, 2)
    assert x.square().sum(-1).mean().item() == pytest.approx(2, abs=1e-3)
    variances = x.var(1).sum(-1)
    assert variances == pytest.approx(torch.full((6,), 0.0683), abs=0.0015)
    norms = x.square().sum(-1).mean(-1)
    assert norms[::2] == pytest.approx(torch.full((3,), 3.545), abs=0.02)
    assert norms[1::2] == pytest.approx(torch.full((3,), 0.4547), abs=0.01)


def test_training_samples_are_those_of_the_held_out_splits() -> None:
    data = SeparabilityDataModule(n_per_concept=30_000, batch_size=100_000, seed=1)
    x, concepts, positions, target = next(iter(data.train_dataloader()))
    assert positions is None
    assert target is None
    assert concepts.bincount() / 100_000 == pytest.approx(torch.full((6,), 1 / 6), abs=0.006)
    for i, center in enumerate(data.centers):
        torch.testing.assert_close(x[concepts == i].mean(0), center, rtol=0, atol=0.006)
        torch.testing.assert_close(x[concepts == i].var(0), data.std[i].square(), rtol=0, atol=0.0012)


def test_seed_decides() -> None:
    first = SeparabilityDataModule(**SMALL, seed=3)
    torch.randn(1000)  # nothing depends on what others draw
    second, other = SeparabilityDataModule(**SMALL, seed=3), SeparabilityDataModule(**SMALL, seed=4)
    for split in ("val", "test"):
        assert torch.equal(points(first, split), points(second, split))
        assert not torch.equal(points(first, split), points(other, split))
    torch.rand(10)
    assert torch.equal(stream(first), stream(second))
    assert torch.equal(stream(first), stream(first))


def test_splits_are_disjoint_draws() -> None:
    data = SeparabilityDataModule(**SMALL, seed=3)
    drawn = [stream(data), points(data, "val"), points(data, "test")]
    rows = [set(map(tuple, x.tolist())) for x in drawn]
    assert len(set.union(*rows)) == sum(map(len, rows)) == 13 * 64 + 6 * 50


def test_without_a_seed_the_programs_seed_counts() -> None:
    def sample(seed: int, drawn: int) -> torch.Tensor:
        pl.seed_everything(seed, verbose=False)
        torch.randn(drawn)
        return stream(SeparabilityDataModule(**SMALL))

    assert torch.equal(sample(7, 0), sample(7, 500))
    assert not torch.equal(sample(7, 0), sample(8, 0))


def test_making_data_leaves_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    data = SeparabilityDataModule(**SMALL, seed=3)
    data.split("val")
    data.train_dataloader().dataset[0]
    assert torch.equal(state, torch.get_rng_state())


def test_a_split_is_made_once() -> None:
    data = SeparabilityDataModule(**SMALL)
    assert data.split("val") is data.split("val")
    assert data.val_dataloader().dataset.samples is data.split("val")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_concepts": 0}, "n_concepts must be at least 1, but is 0"),
        ({"n_per_concept": 0}, "n_per_concept must be at least 1, but is 0"),
        ({"n_val_per_concept": 0}, "n_val_per_concept must be at least 1, but is 0"),
        ({"n_test_per_concept": -1}, "n_test_per_concept must be at least 1, but is -1"),
        ({"radii": ()}, "the number of radii must be at least 1, but is 0"),
        ({"variance": 0.0}, "variance must be positive .*, but are 0.0"),
        ({"variance": math.nan}, "variance must be positive .*, but are nan"),
        ({"variance_floor": -1e-6}, "variance must be positive and its floor at least 0.*, but are .*, -1e-06"),
        ({"train_fraction": 0.0}, "train_fraction must lie between 0 and 1, but is 0.0"),
        ({"train_fraction": 1.0}, "train_fraction must lie between 0 and 1, but is 1.0"),
        ({"train_fraction": math.nan}, "train_fraction must lie between 0 and 1, but is nan"),
        ({"n_val_per_concept": 41}, r"must be at most the 60 of 200 points .*, but is 41 \+ 20"),
        ({"train_fraction": 0.004}, "and leave one for training"),
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, but is 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, but is -1"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SeparabilityDataModule(**{**SMALL, **changes})


def test_the_held_out_points_may_be_used_up() -> None:
    data = SeparabilityDataModule(**{**SMALL, "n_val_per_concept": 40})
    assert data.n_concepts == 6


def test_a_training_split_smaller_than_a_batch() -> None:
    data = SeparabilityDataModule(**{**SMALL, "batch_size": 841})
    with pytest.raises(ValueError, match=r"at least one batch .* = 841 samples, but holds 840"):
        data.train_dataloader()
    assert len(SeparabilityDataModule(**{**SMALL, "batch_size": 840}).train_dataloader()) == 1


def test_other_concepts() -> None:
    data = SeparabilityDataModule(**SMALL, n_concepts=4, radii=(1, 2, 3))
    torch.testing.assert_close(data.centers.norm(dim=1), torch.tensor([1.0, 2.0, 3.0, 1.0]))
    assert data.concept_names == ["C0", "C1", "C2", "C3"]
