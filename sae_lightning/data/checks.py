"""Checks of plain values from untrusted files, such as JSON.

A check takes a value and its place in the file, such as `layers.first.d_in`, and raises a ValueError that names the
place, the rule and the value. Checks of lists and mappings are composed of checks of their values. The place of a whole
file is the empty string.
"""

import math
import re
import reprlib
from collections.abc import Callable
from typing import Any

Check = Callable[[Any, str], None]


def require(holds: bool, place: str, rule: str, value: Any) -> None:
    """Raise a ValueError unless a rule holds; the message shortens long values."""
    if not holds:
        raise ValueError(f"{place} must be {rule}, but is {reprlib.repr(value)}")


def text(value: Any, place: str) -> None:
    """Require a string."""
    require(isinstance(value, str), place, "a string", value)


def truth(value: Any, place: str) -> None:
    """Require a bool."""
    require(isinstance(value, bool), place, "true or false", value)


def finite(value: Any, place: str) -> None:
    """Require a finite float."""
    require(isinstance(value, float) and math.isfinite(value), place, "a finite float", value)


def digest(value: Any, place: str) -> None:
    """Require a SHA-256 in hexadecimal."""
    holds = isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None
    require(holds, place, "a SHA-256 of 64 hexadecimal digits", value)


def integer(low: int) -> Check:
    """Return a check for integers of at least `low`; bools do not count as integers."""

    def check(value: Any, place: str) -> None:
        require(type(value) is int and value >= low, place, f"an integer of at least {low}", value)

    return check


def optional(check: Check) -> Check:
    """Return a check that also allows None."""

    def check_unless_none(value: Any, place: str) -> None:
        if value is not None:
            check(value, place)

    return check_unless_none


def each(check: Check) -> Check:
    """Return a check for lists whose values all pass `check`."""

    def check_each(values: Any, place: str) -> None:
        require(isinstance(values, list), place, "a list", values)
        for i, value in enumerate(values):
            check(value, f"{place}[{i}]")

    return check_each


def table(check: Check) -> Check:
    """Return a check for dicts with any keys whose values all pass `check`."""

    def check_table(values: Any, place: str) -> None:
        require(isinstance(values, dict), place, "a mapping", values)
        for key, value in values.items():
            check(value, _within(place, key))

    return check_table


def fields(checks: dict[str, Check], others: bool = False) -> Check:
    """Return a check for dicts with given keys.

    Args:
        checks: The check of each key's value.
        others: Whether other keys are allowed.

    Example:
        >>> from sae_lightning.data.checks import fields, integer
        >>> fields({"d_in": integer(1)})({"d_in": 0}, "layer")
        Traceback (most recent call last):
        ValueError: layer.d_in must be an integer of at least 1, but is 0
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
