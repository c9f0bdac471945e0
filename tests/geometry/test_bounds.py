import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from sae_lightning.data import SeparabilityDataModule
from sae_lightning.geometry import Bound, bounds
from sae_lightning.nn import Ball, Cone, ConvexCell, HalfSpace, ReceptiveField

FAMILIES = [HalfSpace(), Ball(), Cone(), Cone(shared_apex=True), ConvexCell()]
INNER, OUTER = [1, 3, 5], [0, 2, 4]


def best_f1(scores, members):
    """The best F1 over all thresholds, of distinct scores `(n, n_fields)`."""
    hits = np.cumsum(members[np.argsort(-scores, axis=0)], axis=0)
    return (2 * hits / (np.arange(1, len(scores) + 1)[:, None] + members.sum())).max()


@pytest.fixture(scope="module")
def plane():
    """The separability data, and all bounds."""
    concepts, generator = SeparabilityDataModule().concepts(), torch.Generator().manual_seed(0)
    training, held_out = concepts.of_each(1500, generator), concepts.of_each(4000, generator)
    return training, bounds(training.activations, training.concepts, 6, FAMILIES, held_out[:2])


def test_separability_is_what_exhaustive_search_says(plane):
    training, found = plane
    x, angles = training.activations.numpy().astype(float), np.linspace(0, 2 * np.pi, 240, endpoint=False)
    along = x @ np.stack([np.cos(angles), np.sin(angles)])
    for concept in range(6):
        members = training.concepts.numpy() == concept
        exhaustive = best_f1(along, members)
        # a few samples more than what a grid finds may be caught; held-back samples choose, so a few less
        assert found[HalfSpace()].train_f1[concept].item() == pytest.approx(exhaustive, abs=5e-3)

        axis = np.linspace(-0.3, 0.3, 9)
        centres = x[members].mean(0) + np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
        distances = ((x[:, None] - centres) ** 2).sum(-1)
        assert found[Ball()].train_f1[concept].item() == pytest.approx(best_f1(-distances, members), abs=5e-3)


def test_separability_bounds(plane):
    half_space, ball = plane[1][HalfSpace()].f1, plane[1][Ball()].f1
    np.testing.assert_allclose(half_space[INNER], 0.61, atol=0.01)
    assert (half_space[OUTER] >= 0.99).all()
    assert (ball >= 0.99).all()


def test_wider_families_reach_what_their_special_cases_do(plane):
    found = plane[1]
    for family in (Cone(), ConvexCell()):
        for case in family.special_cases:
            assert (found[family].f1 >= found[case].f1 - 0.005).all()
    assert (found[Cone()].f1 >= found[Cone(shared_apex=True)].f1 - 0.005).all()


def test_half_spaces_of_few_concepts_meet_in_one_apex():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3000, 5, generator=generator)
    concepts = (x[:, :3] + 0.3 * torch.randn(3000, 3, generator=generator)) > torch.tensor([1.5, 1.0, -2.0])
    found = bounds(x, concepts, 3, [HalfSpace(), Cone(shared_apex=True)], (x, concepts))
    flat, cone = found.values()
    assert (flat.f1 > 0.7).all()
    assert (cone.f1 >= flat.f1 - 0.005).all()


def test_cones_of_one_apex_are_what_a_grid_says(plane):
    training, found = plane
    x, labels = training.activations.numpy().astype(float), training.concepts.numpy()
    # from the middle, by symmetry, all concepts lie in equal sectors
    angles = np.arctan2(x[:, 1], x[:, 0])
    for concept in range(6):
        off = np.abs((angles - np.pi / 3 * concept + np.pi) % (2 * np.pi) - np.pi)
        expected = best_f1(-off[:, None], labels == concept)
        assert found[Cone(shared_apex=True)].train_f1[concept].item() == pytest.approx(expected, abs=0.01)


def test_intervals_hold_the_bounds(plane):
    for bound in plane[1].values():
        assert (bound.low <= bound.f1).all()
        assert (bound.f1 <= bound.high).all()
        assert all(values.dtype == torch.float64 and values.shape == (6,) for values in bound)
    widths = plane[1][HalfSpace()].high - plane[1][HalfSpace()].low
    assert (widths[INNER] > 0.01).all()
    assert (widths[OUTER] < 0.01).all()


def blobs(n=300, seed=0):
    """Three overlapping groups in three dimensions."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return torch.randn(n, 3, generator=generator) + 2 * torch.eye(3)[labels], labels


def same(a: Bound, b: Bound):
    torch.testing.assert_close(tuple(a), tuple(b), rtol=0, atol=0, equal_nan=True)


def test_bounds_depend_on_nothing_but_their_arguments():
    held_out = blobs(seed=1)
    alone = bounds(*blobs(), 3, [ConvexCell()], held_out)[ConvexCell()]
    torch.rand(3)
    among = bounds(*blobs(), 3, [Ball(), ConvexCell(), HalfSpace()], held_out)[ConvexCell()]
    assert torch.equal(alone.f1, among.f1)
    assert torch.equal(alone.train_f1, among.train_f1)
    other_seed = bounds(*blobs(), 3, [ConvexCell()], held_out, seed=1)[ConvexCell()]
    assert not torch.equal(alone.low, other_seed.low)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_units_do_not_matter(scale):
    (x, labels), (y, held_out) = blobs(), blobs(seed=1)
    expected = bounds(x, labels, 3, [HalfSpace(), Cone()], (y, held_out))
    shift = torch.tensor([5.0, -3.0, 1.0])
    found = bounds(scale * (x + shift), labels, 3, [HalfSpace(), Cone()], (scale * (y + shift), held_out))
    for family, bound in expected.items():
        torch.testing.assert_close(found[family].f1, bound.f1, rtol=0, atol=0.03)


def test_unlabelled_samples_are_left_out():
    (x, labels), (y, held_out) = blobs(), blobs(seed=1)
    far, unlabelled = 100 * torch.ones(50, 3), torch.full((50,), -1)
    more = torch.cat([far, x]), torch.cat([unlabelled, labels])
    also_more = torch.cat([y, far]), torch.cat([held_out, unlabelled])
    same(
        bounds(*more, 3, [HalfSpace()], also_more)[HalfSpace()],
        bounds(x, labels, 3, [HalfSpace()], (y, held_out))[HalfSpace()],
    )


def test_a_matrix_says_the_same_as_labels_and_may_overlap():
    (x, labels), (y, held_out) = blobs(), blobs(seed=1)
    one_hot = [torch.nn.functional.one_hot(of, 3).bool() for of in (labels, held_out)]
    expected = bounds(x, labels, 3, [Ball()], (y, held_out))[Ball()]
    same(bounds(x, one_hot[0], 3, [Ball()], (y, one_hot[1]))[Ball()], expected)
    overlapping = [torch.cat([of, x_[:, :1] > 0.5], 1) for of, x_ in zip(one_hot, (x, y), strict=True)]
    found = bounds(x, overlapping[0], 4, [HalfSpace()], (y, overlapping[1]))[HalfSpace()]
    assert found.f1[3] > 0.95


def test_a_concept_that_cannot_be_fitted_changes_no_other():
    (x, labels), (y, held_out) = blobs(), blobs(seed=1)
    found = bounds(x, labels, 5, [HalfSpace()], (y, held_out))[HalfSpace()]
    assert all(values.isnan().tolist() == [False] * 3 + [True] * 2 for values in found)
    torch.testing.assert_close(found.f1[:3], bounds(x, labels, 3, [HalfSpace()], (y, held_out))[HalfSpace()].f1)


def test_concepts_need_two_members_and_others_in_both_sets():
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    concepts = torch.zeros(20, 4, dtype=torch.bool)
    concepts[:, 0] = True  # no others
    concepts[:1, 1] = True  # one member
    concepts[:2, 2] = True
    concepts[::2, 3] = True
    assert bounds(x, concepts, 4, [Ball()], (x, concepts))[Ball()].f1.isnan().tolist() == [True, True, False, False]
    alone = torch.zeros(20, dtype=torch.int64)
    for bound in bounds(x, alone, 1, FAMILIES, (x, alone)).values():
        assert all(values.isnan().all() for values in bound)


def test_constant_features_tell_nothing():
    x, labels = torch.full((60, 3), 7.0), torch.arange(60) % 3
    for family, bound in bounds(x, labels, 3, FAMILIES, (x, labels)).items():
        torch.testing.assert_close(bound.f1, torch.full((3,), 0.5).double(), msg=repr(family))  # all fire


def test_many_dimensions_are_not_learned_by_heart():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 1000, 300, generator=generator)
    shift = 2.5 * torch.nn.functional.one_hot(torch.tensor(5), 300)
    labels = torch.arange(1000) % 4
    x[labels == 0] += shift
    y[labels == 0] += shift
    found = bounds(x, labels, 4, [HalfSpace(), ConvexCell()], (y, labels))
    best = best_f1(y[:, 5:6].double().numpy(), labels.numpy() == 0)  # what knowing the direction gives
    for bound in found.values():
        assert best - 0.2 < bound.f1[0] < best + 0.02
        assert bound.f1[1:].max() < 0.5


@dataclass(frozen=True)
class Slab(ReceptiveField):
    """A user's family: what lies between two parallel planes at one distance from a point."""

    name: ClassVar[str] = "slab"
    assumes: ClassVar[str] = "Nothing of interest."

    def score(self, points, parameters):
        return -(points.products(parameters["normals"]) - parameters["middles"]).abs()

    def starts(self, landmarks):
        normals = landmarks.members - landmarks.others
        return {"normals": normals, "middles": normals.new_zeros(*normals.shape[:2], 1)}


def test_a_users_family_has_its_bound():
    x = torch.randn(2, 500, 2, generator=torch.Generator().manual_seed(0))
    labels = (x[..., 1].abs() < 0.5).long()
    found = bounds(x[0], labels[0], 2, [HalfSpace(), Slab()], (x[1], labels[1]))
    assert found[Slab()].f1[1] > 0.95
    assert found[HalfSpace()].f1[1] < 0.75


def test_mistakes_are_named():
    x, labels = blobs()
    good = (x, labels, 3, [HalfSpace()], (x, labels))

    def changed(at, value, **kwargs):
        return bounds(*good[:at], value, *good[at + 1 :], **kwargs)

    with pytest.raises(TypeError, match="families must be receptive fields, but one is 'half-space'"):
        changed(3, ["half-space"])
    with pytest.raises(ValueError, match="concepts must label some samples, but all 300 are unlabeled"):
        changed(1, torch.full((300,), -1))
    with pytest.raises(ValueError, match="held_out must label some samples"):
        changed(4, (x, torch.full((300,), -1)))
    with pytest.raises(ValueError, match="concepts must hold labels from -1 to 1, but holds 2"):
        changed(2, 2)
    with pytest.raises(ValueError, match=r"concepts of dtype bool must have shape \(300, 3\), but has \(300, 4\)"):
        changed(1, torch.ones(300, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"int64 labels \(300,\) or a bool matrix, but has shape \(299,\)"):
        changed(1, labels[1:])
    with pytest.raises(ValueError, match="finite floating-point"):
        changed(0, x.masked_fill(x > 3, math.nan))
    with pytest.raises(ValueError, match="held_out must have d_in = 3, as x has, but has 2"):
        changed(4, (x[:, :2], labels))
    with pytest.raises(ValueError, match="n_concepts must be at least 1, but is 0"):
        changed(2, 0)
    with pytest.raises(ValueError, match="n_resamples must be at least 1, but is 0"):
        bounds(*good, n_resamples=0)
    with pytest.raises(ValueError, match=r"confidence must lie between 0 and 1, but is 1\.5"):
        bounds(*good, confidence=1.5)
