import json
import math
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from sae_lightning.data import HeterogeneityDataModule
from sae_lightning.nn import Standardizer

DIMS = (6, 14, 30, 62, 126)
SMALL: dict[str, Any] = {
    "n_per_concept": 200,
    "n_val_per_concept": 30,
    "n_test_per_concept": 20,
    "batch_size": 64,
    "num_workers": 0,
}


def small(**changes: Any) -> HeterogeneityDataModule:
    return HeterogeneityDataModule(**{**SMALL, "seed": 0, **changes})


def many(data: HeterogeneityDataModule, n: int = 20_000) -> torch.Tensor:
    """Points of each concept, float64 `(n_concepts, n, d_in)`."""
    x = data.concepts().of_each(n, torch.Generator().manual_seed(5)).activations
    return x.double().view(data.n_concepts, n, data.d_in)


def covariances(data: HeterogeneityDataModule) -> np.ndarray:
    return np.stack([np.cov(points.T.numpy()) for points in many(data)])


def test_defaults_are_the_papers() -> None:
    data = HeterogeneityDataModule(seed=0)
    assert (data.d_in, data.n_concepts, data.dims) == (128, 5, DIMS)
    assert data.concept_names == ["d6", "d14", "d30", "d62", "d126"]
    assert (data.batch_size, data.samples_per_epoch) == (2048, 22_400_000)
    assert len(data.train_dataloader()) == 22_400_000 // 2048
    for split in ("val", "test"):
        made = data.split(split)  # type: ignore[arg-type]
        assert made.activations.shape == (5000, 128)
        assert made.concepts.tolist() == [concept for concept in range(5) for _ in range(1000)]
    for dim, std in zip(DIMS, data.std.double(), strict=True):
        wanted = torch.full((128,), 1e-6, dtype=torch.float64)
        wanted[:dim] += 1 / 50 / dim
        torch.testing.assert_close(std.square(), wanted, rtol=1e-5, atol=0)
    centers = torch.stack([HeterogeneityDataModule(seed=seed).concepts().centers for seed in range(40)])
    scale = 300 / 50 / 128
    assert 0 <= centers.min() < 1e-4
    assert 0.999 * scale < centers.max() < scale
    assert centers.mean().item() == pytest.approx(scale / 2, rel=0.01)
    assert centers.var().item() == pytest.approx(scale**2 / 12, rel=0.02)


def test_covariances_are_those_of_the_definition() -> None:
    for dim, found in zip(DIMS, covariances(HeterogeneityDataModule(seed=0)), strict=True):
        variance = 1 / 50 / dim
        wanted = np.diag([variance + 1e-6] * dim + [1e-6] * (128 - dim))
        np.testing.assert_allclose(np.diag(found), np.diag(wanted), rtol=0.06)  # six standard deviations
        assert np.abs(found - wanted).max() < 0.06 * variance


def test_standardised_as_in_the_paper() -> None:
    """Over seeds: mean squared norm and variance of each concept once the data's mean squared norm is 128."""
    norms, variances = [], []
    for seed in range(12):
        x = many(HeterogeneityDataModule(seed=seed), 1000).float()
        standardizer = Standardizer(128)
        standardizer.fit(x.flatten(0, 1))
        z = standardizer(x)
        norms.append(z.square().sum(-1).mean(1))
        variances.append(z.var(1).sum(-1))
    # the paper's single draw: 124.9 to 131.3, and 65.3 to 67.7
    assert torch.stack(norms).mean().item() == pytest.approx(128, abs=0.05)
    assert torch.stack(variances).mean().item() == pytest.approx(66.2, abs=1)
    assert torch.stack(norms).mean(0) == pytest.approx(torch.tensor([128.06, 131.32, 127.46, 124.93, 128.85]), abs=6)
    paper = torch.tensor([67.732, 65.296, 66.005, 65.458, 66.345])
    assert torch.stack(variances).mean(0) == pytest.approx(paper, abs=2.5)


@pytest.mark.parametrize("rotate", [False, True])
def test_subspaces_have_their_dimensions(rotate: bool) -> None:
    data = small(variance_floor=0.0, rotate=rotate)
    points = many(data, 400)
    centered = points - data.concepts().centers.double()[:, None]
    for dim, x in zip(DIMS, centered, strict=True):
        assert np.linalg.matrix_rank(x.numpy(), tol=1e-4) == dim
        outside = x[:, dim:].abs().amax() if dim < 128 else torch.tensor(0.0)
        assert (outside > 1e-3) == rotate


def test_each_concept_is_turned_by_a_rotation_of_its_own() -> None:
    turned, plain = small(rotate=True, dims=(4, 4), d_in=8), small(dims=(4, 4), d_in=8)
    concepts = turned.concepts()
    assert concepts.rotations is not None
    assert torch.equal(concepts.centers, plain.concepts().centers)
    torch.testing.assert_close(concepts.rotations @ concepts.rotations.mT, torch.eye(8).expand(2, -1, -1))
    assert not torch.allclose(concepts.rotations[0], concepts.rotations[1], atol=0.1)
    for rotation, unturned, found in zip(
        concepts.rotations.double().numpy(), covariances(plain), covariances(turned), strict=True
    ):
        np.testing.assert_allclose(found, rotation @ unturned @ rotation.T, atol=3e-4)  # variances are 5e-3
        np.testing.assert_allclose(np.linalg.eigvalsh(found), np.linalg.eigvalsh(unturned), atol=1e-6)


@pytest.mark.parametrize("anisotropy", [1.0, 3.0, 1e4])
def test_anisotropy_shapes_the_variances_and_keeps_their_sum(anisotropy: float) -> None:
    data = small(anisotropy=anisotropy, dims=(1, 2, 6, 128), variance=2.0, variance_floor=0.0)
    for dim, std in zip(data.dims, data.std.double(), strict=True):
        variances = std[:dim].square()
        assert variances.sum().item() == pytest.approx(2)
        assert (std[dim:] == 0).all()
        if dim > 1:
            assert (variances[0] / variances[-1]).item() == pytest.approx(anisotropy)
            ratios = variances[1:] / variances[:-1]
            assert ratios == pytest.approx(torch.full_like(ratios, anisotropy ** (-1 / (dim - 1))))


def test_frequencies_are_for_training_only() -> None:
    data = small(frequencies=(1, 2, 3, 4, 0), batch_size=50_000, n_per_concept=20_000)
    labels = next(iter(data.train_dataloader())).concepts
    assert labels.bincount(minlength=5) / 50_000 == pytest.approx(torch.tensor([0.1, 0.2, 0.3, 0.4, 0]), abs=0.01)
    assert data.split("val").concepts.bincount().tolist() == [30] * 5


def test_seed_decides_on_centers_rotations_and_points() -> None:
    first, second, other = small(rotate=True), small(rotate=True), small(rotate=True, seed=1)
    state = torch.get_rng_state()
    torch.randn(100)
    one, two, three = first.concepts(), second.concepts(), other.concepts()
    for name in ("centers", "rotations"):
        assert torch.equal(getattr(one, name), getattr(two, name))
        assert not torch.equal(getattr(one, name), getattr(three, name))
    for split in ("val", "test"):
        a, b, c = (data.split(split).activations for data in (first, second, other))  # type: ignore[arg-type]
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    torch.set_rng_state(state)


def test_all_splits_have_the_same_centers() -> None:
    data = small(rotate=True, n_per_concept=4000, n_val_per_concept=500, n_test_per_concept=500, batch_size=2500)
    train = next(iter(data.train_dataloader()))
    means = [torch.stack([train.activations[train.concepts == j].mean(0) for j in range(5)])]
    means += [data.split(split).activations.view(5, 500, 128).mean(1) for split in ("val", "test")]  # type: ignore[arg-type]
    for mean in means:  # a coordinate's mean deviates by up to 0.006 where the variance is spread over six axes
        assert (mean - data.concepts().centers).abs().max() < 0.015


def test_ranks_agree_on_the_geometry_when_a_run_is_set_up() -> None:
    """Without a seed the ranks may start from different ones; what rank zero has counts."""

    class Strategy:
        def broadcast(self, seed: int) -> int:
            return 7

    class Trainer:
        strategy = Strategy()

    data: Any = small(seed=3, rotate=True)
    data.concepts()
    data.trainer = Trainer()
    data.setup()
    assert torch.equal(data.concepts().centers, small(seed=7).concepts().centers)


@pytest.mark.parametrize(
    ("dims", "names"),
    [((3,), ["d3"]), ((2, 3, 2, 2), ["d2_0", "d3", "d2_1", "d2_2"]), ([4, 5], ["d4", "d5"])],
)
def test_names_are_unique(dims: Any, names: list[str]) -> None:
    assert small(dims=dims).concept_names == names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d_in": 0}, r"dims must be dimensions between 1 and d_in = 0, at least one, but are \(6, "),
        ({"d_in": 125}, "dims must be dimensions between 1 and d_in = 125"),
        ({"dims": ()}, r"dims must be .*, but are \(\)"),
        ({"dims": (6, 0)}, r"dims must be .*, but are \(6, 0\)"),
        ({"centre_scale": -0.1}, "centre_scale must be at least 0 and finite, but is -0.1"),
        ({"centre_scale": math.inf}, "centre_scale must be at least 0 and finite, but is inf"),
        ({"variance": 0.0}, "variance must be positive .*, but are 0.0"),
        ({"variance": math.nan}, "variance must be positive .*, but are nan"),
        ({"variance": math.inf}, "variance must be positive .*, but are inf"),
        ({"variance_floor": -1e-6}, "variance must be positive and its floor at least 0.*, but are 0.02, -1e-06"),
        ({"anisotropy": 0.9}, "anisotropy must be at least 1 and finite, but is 0.9"),
        ({"anisotropy": math.nan}, "anisotropy must be at least 1 and finite, but is nan"),
        ({"frequencies": (1, 1)}, r"frequencies must be one number per concept, 5, .*, but are \(1, 1\)"),
        ({"frequencies": (1, 1, 1, 1, -1)}, "frequencies must be .*, each at least 0"),
        ({"frequencies": (1, 1, 1, 1, math.nan)}, "frequencies must be .*, each at least 0 and finite"),
        ({"frequencies": (0, 0, 0, 0, 0)}, "frequencies must be .* not all 0, but are"),
        ({"n_per_concept": 0}, "n_per_concept must be at least 1, but is 0"),
        ({"n_val_per_concept": 0}, "n_val_per_concept must be at least 1, but is 0"),
        ({"n_test_per_concept": -1}, "n_test_per_concept must be at least 1, but is -1"),
        ({"train_fraction": 1.0}, "train_fraction must lie between 0 and 1, but is 1.0"),
        ({"n_val_per_concept": 41}, r"must be at most the 60 of 200 points .*, but is 41 \+ 20"),
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"eval_batch_size": 0}, "eval_batch_size must be at least 1, but is 0"),
        ({"num_workers": -1}, "num_workers must be at least 0, but is -1"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small(**changes)


def test_hyperparameters_fit_into_json() -> None:
    """What a config gives as lists."""
    data = small(**json.loads('{"dims": [2, 3], "frequencies": [1, 3], "d_in": 4}'))
    assert isinstance(data, pl.LightningDataModule)
    assert next(iter(data.train_dataloader())).activations.shape == (64, 4)
