"""Checks of plain values, such as those of a JSON file, which may come from anywhere.

A check takes a value and its place, such as `layers.first.d_in`, and raises a ValueError that names the place, the rule
and the value. Checks of lists and tables are made of checks of their values. The place of a whole file is empty.
"""

import math
import re
import reprlib
from collections.abc import Callable
from typing import Any

Check = Callable[[Any, str], None]


def require(holds: bool, place: str, rule: str, value: Any) -> None:
    """Raise a ValueError unless a rule holds; long values are shortened in its message."""
    if not holds:
        raise ValueError(f"{place} must be {rule}, but is {reprlib.repr(value)}")


def text(value: Any, place: str) -> None:
    """A string."""
    require(isinstance(value, str), place, "a string", value)


def truth(value: Any, place: str) -> None:
    """True or false."""
    require(isinstance(value, bool), place, "true or false", value)


def finite(value: Any, place: str) -> None:
    """A finite float."""
    require(isinstance(value, float) and math.isfinite(value), place, "a finite float", value)


def digest(value: Any, place: str) -> None:
    """A SHA-256 in hexadecimal."""
    holds = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
    require(holds, place, "a SHA-256 of 64 hexadecimal digits", value)


def integer(low: int) -> Check:
    """Integers of at least `low`; true and false are none."""

    def check(value: Any, place: str) -> None:
        require(type(value) is int and value >= low, place, f"an integer of at least {low}", value)

    return check


def optional(check: Check) -> Check:
    """None, or what a check allows."""

    def check_unless_none(value: Any, place: str) -> None:
        if value is not None:
            check(value, place)

    return check_unless_none


def each(check: Check) -> Check:
    """Lists whose values all pass a check."""

    def check_each(values: Any, place: str) -> None:
        require(isinstance(values, list), place, "a list", values)
        for i, value in enumerate(values):
            check(value, f"{place}[{i}]")

    return check_each


def table(check: Check) -> Check:
    """Dicts with any keys, whose values all pass a check."""

    def check_table(values: Any, place: str) -> None:
        require(isinstance(values, dict), place, "a mapping", values)
        for key, value in values.items():
            check(value, _within(place, key))

    return check_table


def fields(checks: dict[str, Check], others: bool = False) -> Check:
    """Dicts with a check for each key.

    Args:
        checks: The checks.
        others: Whether further keys may be there.
    """

    def check_fields(values: Any, place: str) -> None:
        require(isinstance(values, dict), place, "a mapping", values)
        holds = checks.keys() <= values.keys() if others else checks.keys() == values.keys()
        rule = f"a mapping with the keys {list(checks)}{' and perhaps others' if others else ''}"
        require(holds, place or "the file", rule, list(values))
        for key, check in checks.items():
            check(values[key], _within(place, key))

    return check_fields


def _within(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key
