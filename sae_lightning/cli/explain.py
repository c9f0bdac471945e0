"""The parser's errors in one line: what is wrong, where, and what was probably meant."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import NamedTuple

_NOISE = re.compile(
    r"Does not validate against|Subtypes: |Errors:|Expected a <class 'NoneType'>|Given value type: |Given value: "
    r"|Parser key |Problem with given class_path|Expected a path but "
)


class _Place(NamedTuple):
    """Where an error lies, and what is known there."""

    key: str
    """The argument, such as `--model.lr_scheduler`; empty where the message names none."""
    first: str
    """Its first part, such as `model`."""
    cls: str
    """Name of the class that was given there; empty where none was."""
    value: str
    """The value that was given, as text."""
    classes: Mapping[str, Iterable[type]]
    arguments: Iterable[str]

    def __str__(self) -> str:
        return f"{self.key} {self.cls}".strip()


def one_line(message: str, classes: Mapping[str, Iterable[type]], arguments: Iterable[str]) -> str:
    """Say in one sentence what a message of jsonargparse says in many lines.

    Args:
        message: The message.
        classes: Known classes by the argument that takes one, such as `model`.
        arguments: All arguments of the command, such as `--trainer.max_steps`.
    """
    keys = re.findall(r'Parser key "(.+?)"', message)
    names = re.findall(r"Problem with given class_path '(.+?)'", message)
    # a class that lacks an argument may be that of an inner key, which only its value names
    inner = re.search(r"Given value: Namespace\(class_path='(.+?)'", message)
    name = inner[1] if inner and len(keys) > len(names) else (names or [""])[-1]
    value = re.search(r"(?:Got value|Given value): (.+)", message)
    place = _Place(
        f"--{'.'.join(keys)}" if keys else "",
        keys[0] if keys else "",
        name.rpartition(".")[2],
        value[1].strip() if value else "",
        classes,
        arguments,
    )
    known = [cls.__name__ for cls in classes.get(place.first, ())]
    base = place.cls if len(keys) == 1 and name.startswith("sae_lightning.") and place.cls not in known else ""
    if "Expected an instantiatable class" in message:
        base = place.value.rpartition(".")[2]
    if base in ("RunModule", "LightningDataModule"):  # the parser's own words where none was given
        return f"{place.key} must be given: choose from {', '.join(known)}"
    if base and known:
        return f"{place.key} {base} is a base class of others: choose from {', '.join(known)}"
    for pattern, explained in _RULES:
        if found := re.search(pattern, message):
            return explained(place, found)
    rest = [line.strip().removeprefix("- ") for line in message.splitlines() if not _NOISE.search(line)]
    return " ".join(filter(None, [place.key and f"{place.key}:", *rest]))


def _missing(place: _Place, found: re.Match[str]) -> str:
    names = [name.strip() for name in found[1].split(",")]
    if place.key:
        return f"{place} needs {' and '.join(f'{place.key}.{name}' for name in names)}"
    return f"{' and '.join('--' + name.rpartition('.')[2] for name in names)} must be given"


def _unknown_argument(place: _Place, found: re.Match[str]) -> str:
    known = [cls for group in place.classes.values() for cls in group if cls.__name__ == place.cls]
    names = list(inspect.signature(known[0]).parameters) if known else []
    return f"{place} has no argument {found[1]!r}{_meant(found[1], names, f'{place.key}.')}"


def _unknown_class(place: _Place, found: re.Match[str]) -> str:
    if found[1].lower() in ("nan", "inf", "-inf"):  # words to the parser
        return f"{place.key} must be a finite number, but is {found[1]}"
    known = [cls.__name__ for cls in place.classes.get(place.first, ())]
    meant = _meant(found[1], known)
    if not meant and known:
        meant = f": choose from {', '.join(known)}, or give the import path of your own"
    return f"{place.key}: there is no class {found[1]!r}{meant}"


def _choices(place: _Place, found: re.Match[str]) -> str:
    choices = re.findall(r"Expected a typing\.Literal\[(.+?)\]", found.string)
    return f"{place.key} must be one of {', '.join(choices)}, but is {place.value!r}"


_RULES: list[tuple[str, Callable[[_Place, re.Match[str]], str]]] = [
    (r"the following arguments are required: (.+)", _missing),
    (r"Option '(.+?)' is not accepted", _unknown_argument),
    (r"Expected a dot import path string: (\S+)", _unknown_class),
    (
        r"Import path does not correspond to a subclass of (\w+)",
        lambda place, found: f"{place.key} must be a class that derives from {found[1]}, but {place.value} does not",
    ),
    (
        r"No module named '(.+?)'",
        lambda place, found: f"{place}: there is no module {found[1]!r}, neither installed nor in the current folder",
    ),
    (
        r"expects a function or a callable class: (.+?)\. Got value: (.+)",
        lambda place, found: f"{place.key} must be a function or a class, but is {found[2]!r}: {found[1]}",
    ),
    (r"Expected a typing\.Literal\[", _choices),
    (
        r"Expected an? <class '(.+?)'>\. Got value: (.+)",
        lambda place, found: f"{place.key} must be of type {found[1]}, but is {found[2].strip()!r}",
    ),
    (
        r"unrecognized arguments: (\S+)",
        lambda place, found: f"there is no argument {found[1]}{_meant(found[1].partition('=')[0], place.arguments)}",
    ),
    (
        r"Subcommand '\w+' does not accept option '(.+?)'",
        lambda place, found: f"there is no argument --{found[1]}{_meant(f'--{found[1]}', place.arguments)}",
    ),
]
"""What messages look like, the most specific ones first, and what is said instead."""


def _meant(given: str, known: Iterable[str], prefix: str = "") -> str:
    close = get_close_matches(given, list(known), n=1)
    return f": did you mean {prefix}{close[0]}?" if close else ""
