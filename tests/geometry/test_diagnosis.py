"""The diagnosis puts together what bounds and dimensions say; bounds are given here, and tested beside."""

import json
import math

import pytest
import torch

from sae_lightning.geometry import Architecture, diagnose, diagnosis
from sae_lightning.geometry.bounds import Bound
from sae_lightning.nn import ConvexCell, HalfSpace

FLAT, CELL = Architecture("flat", HalfSpace()), Architecture("cell", ConvexCell())
GIVEN = {HalfSpace(): [0.95, 0.6], ConvexCell(): [0.99, 0.97]}


@pytest.fixture
def asked(monkeypatch):
    """Calls of `bounds`, which answers as given above."""
    calls = []

    def bounds(x, concepts, n_concepts, families, held_out, seed, n_resamples, confidence):
        calls.append((x, concepts, n_concepts, list(families), held_out, seed, n_resamples, confidence))
        values = [torch.tensor(GIVEN[f], dtype=torch.float64).repeat(n_concepts)[:n_concepts] for f in families]
        return {f: Bound(v, v - 0.1, v + 0.01, v) for f, v in zip(families, values, strict=True)}

    monkeypatch.setattr(diagnosis, "bounds", bounds)
    return calls


def data(n=400, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 5, generator=generator)
    concepts = torch.arange(n) % 4 // 2  # of 0 and 1 equally many
    x[concepts == 0, 2:] = 0
    return x, concepts


def run(x=None, concepts=None, names=("a", "b"), architectures=(FLAT, CELL), held_out=None, **arguments):
    given = data()
    x = given[0] if x is None else x
    concepts = given[1] if concepts is None else concepts
    return diagnose(x, concepts, names, held_out or data(100, 1), architectures, **arguments)


def test_each_concept_gets_its_share_dimension_and_bounds(asked):
    found = run(seed=3, n_resamples=7, confidence=0.9)
    first, second = found.concepts
    assert (first.name, first.n_samples, first.n_held_out, first.share) == ("a", 200, 50, 0.5)
    assert first.dimension.headline.value == pytest.approx(2, rel=0.1)
    assert second.dimension.headline.value == pytest.approx(5, rel=0.1)
    assert (first.k, second.k) == (3, 6)
    assert second.bounds["half-space"] == pytest.approx((0.6, 0.5, 0.61))
    assert found.heterogeneity.ratio == pytest.approx(2.5, rel=0.1)
    x, _, n, families, held_out, *rest = asked[0]
    assert torch.equal(x, data()[0])
    assert torch.equal(held_out[0], data(100, 1)[0])
    assert (n, families, rest) == (2, [HalfSpace(), ConvexCell()], [3, 7, 0.9])


def test_verdicts_name_what_is_hidden(asked):
    flat, cell = run().verdicts
    assert (flat.shows, flat.hides) == (("a",), ("b",))
    assert flat.mean_bound == pytest.approx(0.775)
    assert flat.min_bound == pytest.approx((0.6, 0.5, 0.61))
    assert flat.assumes == HalfSpace().assumes
    assert (cell.shows, cell.hides) == (("a", "b"), ())
    assert run(found_above=0.98).verdicts[1].hides == ()  # the interval reaches up to there
    assert run(found_above=0.995).verdicts[1].hides == ("b",)
    assert run().recommendation.architecture == "cell"


def test_l0_counts_all_concepts_of_a_sample(asked):
    x, _ = data()
    both, second = torch.arange(400) % 2 == 0, torch.arange(400) % 4 == 1
    x[~both & ~second] += 10
    concepts = torch.stack([both, both | second], 1)  # of a quarter no label is known
    x[both | second, 2:] = 0
    held_out = data(100, 1)[0], concepts[:100]
    found = run(x, concepts, held_out=held_out)
    assert [concept.k for concept in found.concepts] == [3, 3]
    brute = [sum(found.concepts[i].k for i in range(2) if row[i]) for row in concepts.tolist() if any(row)]
    assert found.recommendation.l0 == sum(brute) / len(brute) == pytest.approx(5)
    fixed = run(x, concepts, held_out=held_out, architectures=[Architecture("fixed", ConvexCell(), 4)])
    assert fixed.recommendation.k == 6
    x = torch.randn(400, 5, generator=torch.Generator().manual_seed(5))
    full = run(x, concepts, held_out=held_out, architectures=[Architecture("fixed", ConvexCell(), 4)])
    assert [concept.k for concept in full.concepts] == [6, 6]
    assert full.recommendation.k == 6  # not 12: there are five directions, and a centre


def test_all_of_it_is_json(asked):
    plain = json.loads(json.dumps(run().plain(), allow_nan=False))
    assert plain["concepts"][1]["bounds"]["convex cell"]["value"] == 0.97
    assert plain["recommendation"]["d_sae"] == 32
    assert plain["clustered"] is False


def test_a_concept_with_too_few_samples_says_so(asked):
    x, concepts = data()
    concepts[concepts == 0] = -1
    concepts[:10] = 0
    found = run(x, concepts)
    assert math.isnan(found.concepts[0].dimension.headline.value)
    assert "10 samples are fewer than the 30" in found.concepts[0].dimension.notes[0]
    assert found.concepts[0].k is None
    assert found.plain()["concepts"][0]["dimension"]["participation_ratio"]["value"] is None
    assert "dimension is not known" in found.recommendation.reasons[-1]


def test_unlabelled_data_are_clustered_and_say_so(asked):
    x, concepts = data()
    for labels, names in ((torch.full_like(concepts, -1), ()), (torch.zeros(400, 2, dtype=torch.bool), ("a", "b"))):
        held_out = data(100, 1)[0], labels[:100]
        found = run(x, labels, names, held_out=held_out, n_clusters=3)
        assert found.clustered
        assert [concept.name for concept in found.concepts] == ["cluster 0", "cluster 1", "cluster 2"]
        assert sum(concept.n_samples for concept in found.concepts) == 400
        assert sum(concept.n_held_out for concept in found.concepts) == 100
        assert "clusters that k-means found" in found.notes[0]
        assert set(asked[-1][4][1].tolist()) <= {0, 1, 2}  # held-out samples belong to the same clusters


@pytest.mark.filterwarnings("ignore:Number of distinct clusters")
def test_constant_features_and_constant_data_are_borne(asked):
    x, concepts = data()
    wide = torch.cat([x, torch.full((400, 3), 2.0)], 1)
    held_out = torch.cat([data(100, 1)[0], torch.full((100, 3), 2.0)], 1), data(100, 1)[1]
    assert [c.k for c in run(wide, concepts, held_out=held_out).concepts] == [3, 6]
    constant = run(torch.ones(400, 5), torch.full((400,), -1), (), held_out=(torch.ones(9, 5), torch.full((9,), -1)))
    assert len(constant.concepts) == 1
    assert "Only 1 different clusters" in constant.notes[1]
    assert constant.recommendation.d_sae is None


def test_a_single_concept_has_nothing_to_be_told_from(asked):
    x, concepts = data()
    labels = torch.where(concepts == 0, 0, -1)
    held_out = data(100, 1)[0], torch.where(data(100, 1)[1] == 0, 0, -1)
    found = run(x, labels, ("a",), held_out=held_out)
    assert not asked
    assert "there is one concept" in found.notes[0]
    assert found.recommendation.architecture is None
    assert found.recommendation.d_sae == 8
    overlapping = run(x, (concepts == 0)[:, None], ("a",), held_out=(held_out[0], (held_out[1] == 0)[:, None]))
    assert overlapping.verdicts[1].mean_bound == 0.99  # here other samples are known not to belong to it


def test_unknown_receptive_fields_are_named_and_left_out(asked):
    found = run(architectures=(Architecture("own", None), FLAT))
    assert found.notes == ("No bound for own: the receptive fields of such latents are not known.",)
    assert found.verdicts[0].family is None
    assert math.isnan(found.verdicts[0].mean_bound)
    assert found.recommendation.architecture == "flat"
    assert asked[0][3] == [HalfSpace()]


def test_families_of_one_name_are_told_apart(asked, monkeypatch):
    other = ConvexCell(n_pieces=9)
    monkeypatch.setitem(GIVEN, other, [0.5, 0.5])
    found = run(architectures=(CELL, Architecture("more", other)))
    assert list(found.concepts[0].bounds) == ["convex cell of cell", "convex cell of more"]
    assert [verdict.mean_bound for verdict in found.verdicts] == [pytest.approx(0.98), 0.5]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"found_above": 1.5}, "found_above must lie between 0 and 1, but is 1.5"),
        ({"architectures": ()}, "architectures must be at least one"),
        ({"architectures": (FLAT, FLAT)}, r"each with a name of its own, but are \['flat', 'flat'\]"),
        ({"names": ("a", "a")}, "names must all differ"),
        ({"names": ("a",)}, "concepts of x must lie between -1 and 0, one per name, but reach from 0 to 1"),
        ({"x": torch.ones(400)}, "x must hold samples"),
        ({"x": torch.ones(400, 6)}, "held_out must hold samples, floating-point"),
        ({"concepts": torch.zeros(7, dtype=torch.int64)}, r"concepts of x must be int64 \(400,\)"),
        ({"concepts": torch.zeros(400, 3, dtype=torch.bool)}, r"or bool \(400, 2\)"),
        ({"confidence": 0.0}, "confidence must lie between 0 and 1"),
    ],
)
def test_wrong_arguments_are_refused(asked, arguments, words):
    with pytest.raises(ValueError, match=words):
        run(**arguments)
