"""Every rule of the recommendation decides where it should, and says so."""

import math

import pytest

from sae_lightning.geometry import Architecture, Estimate, Heterogeneity, Verdict, recommend
from sae_lightning.nn import Ball, ConvexCell, HalfSpace

HALF, BALL, CELL = HalfSpace(), Ball(), ConvexCell()
EVEN, UNEVEN = Heterogeneity(1.2, 0.1), Heterogeneity(20.0, 0.9)


def chosen(*entries, heterogeneity=EVEN, needed=(3, 5), of_samples=(3, 5), width=0.001):
    """The recommendation for entries (name, field, k, mean bound, smallest bound)."""
    architectures = [Architecture(name, field, k) for name, field, k, _, _ in entries]
    verdicts = [
        Verdict(
            name,
            field and field.name,
            None,
            k,
            mean,
            Estimate(least, least - width, least + width),
            (),
            ("C1",) if least < 0.9 else (),
        )
        for name, field, k, mean, least in entries
    ]
    return recommend(architectures, verdicts, needed, of_samples, heterogeneity)


def test_what_cannot_see_as_much_is_left_out():
    found = chosen(("flat", HALF, None, 0.8, 0.6), ("cell", CELL, None, 0.99, 0.98))
    assert found.architecture == "cell"
    assert (
        "Not flat: a latent sees a half-space, whose bound is 0.800 in the mean and 0.600 at worst" in found.reasons[0]
    )


def test_one_hidden_concept_is_enough_to_leave_an_architecture_out():
    assert chosen(("flat", HALF, None, 0.975, 0.7), ("cell", CELL, None, 0.99, 0.98)).architecture == "cell"


def test_a_smallest_bound_that_cannot_be_told_from_the_best_is_no_worse():
    entries = ("flat", HALF, None, 0.975, 0.94), ("cell", CELL, None, 0.99, 0.98)
    assert chosen(*entries).architecture == "cell"
    assert chosen(*entries, width=0.03).architecture == "flat"


def test_of_equals_the_simpler_is_chosen_whatever_the_order():
    found = chosen(("cell", CELL, None, 1.0, 0.99), ("ball", BALL, None, 0.99, 0.98), ("flat", HALF, None, 0.7, 0.6))
    assert found.architecture == "ball"
    assert "cell could see as much, but with more freedom than needed" in found.reasons[1]


def test_of_the_same_family_the_first_is_chosen():
    entries = [("jump", HALF, None, 0.95, 0.9), ("relu", HALF, None, 0.95, 0.9)]
    assert chosen(*entries).architecture == "jump"
    assert chosen(*entries[::-1]).architecture == "relu"
    assert "jump would do as well; the first one given is recommended" in chosen(*entries[::-1]).reasons[0]


def test_one_k_is_left_out_unless_nothing_else_remains():
    fixed, free = ("fixed", HALF, 8, 1.0, 1.0), ("free", CELL, None, 1.0, 1.0)
    even, uneven = chosen(fixed, free), chosen(fixed, free, heterogeneity=UNEVEN)
    assert even.architecture == uneven.architecture == "free"
    assert "an assumption that others do without" in even.reasons[0]
    assert "dimensions differ by a factor of 20.0" in uneven.reasons[0]
    alone = chosen(fixed, ("free", CELL, None, 0.8, 0.7), heterogeneity=UNEVEN)
    assert alone.architecture == "fixed"
    assert any("Its one k will not fit all concepts" in reason for reason in alone.reasons)


def test_what_has_no_bound_does_not_compete():
    assert chosen(("own", None, None, math.nan, math.nan), ("flat", HALF, None, 0.5, 0.4)).architecture == "flat"
    found = chosen(("own", None, None, math.nan, math.nan))
    assert found.architecture is None
    assert found.reasons[0] == "No architecture is recommended, since no bound is known."
    assert found.d_sae == 16


def test_what_stays_hidden_is_said():
    assert any("can find C1" in reason for reason in chosen(("flat", HALF, None, 0.8, 0.6)).reasons)


def test_numbers_follow_from_what_concepts_need():
    needed = (7, 15, 31, 63, 127)
    of_samples = [n for n, count in zip(needed, (40, 15, 15, 15, 15), strict=True) for _ in range(count)]
    found = chosen(("free", HALF, None, 1.0, 1.0), needed=needed, of_samples=of_samples)
    assert found.l0 == pytest.approx(0.4 * 7 + 0.15 * (15 + 31 + 63 + 127))
    assert (found.k, found.d_sae) == (None, 512)  # 2 * 243
    fixed = chosen(("fixed", HALF, 8, 1.0, 1.0), needed=needed, of_samples=of_samples)
    assert (fixed.k, fixed.l0) == (127, None)


def test_samples_of_several_concepts_need_the_latents_of_all():
    found = chosen(("free", HALF, None, 1.0, 1.0), needed=(3, 5), of_samples=(3, 5, 8, 8))
    assert (found.l0, found.d_sae) == (6, 16)
    assert "L0 of about 6: the mean over samples (3 to 8)" in found.reasons[-2]
    fixed = chosen(("fixed", HALF, 8, 1.0, 1.0), needed=(3, 5), of_samples=(3, 5, 8, 8))
    assert fixed.k == 8
    assert "k = 8: the most that a sample needs" in fixed.reasons[-2]


def test_unknown_dimensions_are_left_out_and_said():
    found = chosen(("free", HALF, None, 1.0, 1.0), needed=(4, None), of_samples=(4,))
    assert (found.l0, found.d_sae) == (4, 8)
    assert "do not include 1 concepts whose dimension is not known" in found.reasons[-1]
    nothing = chosen(("free", HALF, None, 1.0, 1.0), needed=(None, None), of_samples=())
    assert (nothing.l0, nothing.d_sae, nothing.architecture) == (None, None, "free")
