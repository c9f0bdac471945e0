"""Checks of plain values: what they let pass, and what they say of the rest."""

import pytest

from sae_lightning.data.checks import digest, each, fields, finite, integer, optional, table, text, truth

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (text, ["", "x"], [None, 1, ["x"]]),
        (truth, [True, False], [None, 0, 1, "true"]),
        (finite, [0.0, -1e300], [NAN, INF, -INF, 1, True, None, "1"]),
        (digest, ["0" * 64, "9f" * 32], ["0" * 63, "0" * 65, "F" * 64, "0" * 64 + "\n", "g" * 64, None, 0]),
        (integer(0), [0, 10**30], [-1, 0.0, True, None, "0"]),
        (integer(2), [2], [1, False]),
        (optional(text), [None, "x"], [1]),
        (each(integer(0)), [[], [1, 2]], [None, (1,), {}, [1, -1], "12"]),
        (table(integer(0)), [{}, {"a": 1}], [None, [], {"a": -1}]),
        (fields({"a": text}), [{"a": "x"}], [{}, {"a": 1}, {"a": "x", "b": 1}, [], None, "a"]),
        (fields({"a": text}, others=True), [{"a": "x"}, {"a": "x", "b": 1}], [{}, {"b": "x"}, {"a": 1, "b": 1}]),
    ],
)
def test_checks_let_pass_what_they_say_and_nothing_else(check, good, bad):
    for value in good:
        check(value, "place")
    for value in bad:
        with pytest.raises(ValueError, match=r"^place\S* must be .*, but is "):
            check(value, "place")


def test_errors_name_place_rule_and_a_short_form_of_the_value():
    check = fields({"a": table(each(integer(1)))})
    with pytest.raises(ValueError, match=r"^a\.b\[1\] must be an integer of at least 1, but is 0$"):
        check({"a": {"b": [1, 0]}}, "")
    with pytest.raises(ValueError, match=r"^the file must be a mapping with the keys \['a'\], but is \['c'\]$"):
        check({"c": 1}, "")
    with pytest.raises(ValueError, match="must be a mapping") as error:
        check({"a": ["x" * 10_000] * 10_000}, "")
    assert len(str(error.value)) < 300
