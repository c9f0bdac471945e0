"""The tables of the precision benchmark, from made-up measurements."""

import pytest

from benchmarks.precision_report import differences, write_tables


def values(f1: float, l0: float) -> dict[str, float]:
    return {"f1": f1, "monosemanticity": 0.5, "l0": l0, "nmse": 0.1}


WAYS = {
    "32-true": {"0": values(0.5, 10.0), "1": values(0.6, 20.0)},
    "bf16-mixed": {"0": values(0.51, 10.4), "1": values(0.57, 22.0), "2": values(0.0, 1.0)},
}


def test_differences_are_those_of_the_same_seed() -> None:
    assert differences(WAYS, "bf16-mixed", "f1") == pytest.approx([0.01, -0.03])
    assert differences(WAYS, "bf16-mixed", "l0") == pytest.approx([0.04, 0.1])  # shares
    assert differences(WAYS, "nudged", "f1") == []


def test_tables_say_what_is_within_the_bar() -> None:
    timing = {"spade": {"32-true": 0.2, "bf16-mixed": 0.1, "ratio": 0.5}}
    tables = write_tables(
        {"experiments": {"toy": {"steps": 7, "metrics": {"spade": WAYS}, "seconds_per_step": timing}}}
    ).splitlines()
    # F1 and L0 of the second seed are not; monosemanticity and NMSE are equal
    assert "| toy | 6 of 8 |  |  |  |" in tables
    row = "| spade | f1 | 0.55 | 0.100 | -0.010 (-0.030) |  |  |  | 1 of 2 seeds |"
    assert row in tables
    assert "| spade | l0 | 15 | 66.7% | +7.0% (+10.0%) |  |  |  | 1 of 2 seeds |" in tables
    assert "| toy | spade | 200.0 | 100.0 | 0.50 |" in tables
