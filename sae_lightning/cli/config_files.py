"""The configs of a command line: found by path or name, and put before its other arguments."""

import sys
from pathlib import Path
from typing import NoReturn

from sae_lightning.moved import current_text
from sae_lightning.run.files import read_text
from sae_lightning.run.shipped import shipped_path


def find_config(name: str) -> Path:
    """A config's file: the one that is named, or a shipped one such as `separability/compare`.

    Args:
        name: A path, or the name of a shipped config, with its ending or without.

    Raises:
        FileNotFoundError: If there is neither.
        ValueError: If the file is not YAML in UTF-8.
    """
    import yaml

    candidates = (shipped_path(name), shipped_path(f"{name}.yaml"))
    path = next((candidate for candidate in candidates if candidate.is_file()), None)
    if path is None:
        raise FileNotFoundError(f"-c: there is no file {name!r}, nor a shipped config of that name")
    try:
        yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"-c: {str(path)!r} must be a YAML file, but is not: {reason}") from error
    return path


def configs_first(args: list[str]) -> list[str]:
    """Put the configs of a command line before its other arguments, which then win over them wherever they stand.

    Args:
        args: Arguments of a command, without its name; a config may be named as `find_config` takes it, and a class as
            it was in an earlier version.
    """
    configs: list[str] = []
    others: list[str] = []
    left = iter(args)
    for arg in left:
        option, equals, value = arg.partition("=")
        if option in ("-c", "--config"):
            named = value if equals else next(left, None)
            configs += [option] if named is None else [option, str(_found(named))]
        else:
            others.append(current_text(arg))
    return [*configs, *others]


def _found(name: str) -> Path:
    try:
        return find_config(name)
    except FileNotFoundError as error:
        _fail(f"{error} (`sae-lightning configs` lists the shipped ones)")
    except ValueError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    sys.stderr.write(f"error: {message}\n")
    sys.exit(2)
