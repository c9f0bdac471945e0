"""The configs that come with the package, and where they come in on a command line."""

import sys
from importlib.resources import files
from pathlib import Path
from typing import NoReturn

from sae_lightning.files import read_text

FOLDER = "configs"


def configs_folder() -> Path:
    """The folder of the configs that come with the package."""
    return Path(str(files("sae_lightning"))) / FOLDER


def shipped_path(path: str) -> Path:
    """A file: the one that is named, or where there is none, the one of that name among the configs of the package.

    Args:
        path: A path, such as `mine.yaml`, or that of a shipped file, with `configs/` before it or without.
    """
    given = Path(path)
    if given.exists() or given.is_absolute():
        return given
    inside = configs_folder() / given.relative_to(FOLDER) if given.parts[:1] == (FOLDER,) else configs_folder() / given
    return inside if inside.is_file() else given


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
        args: Arguments of a command, without its name; a config may be named as `find_config` takes it.
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
            others.append(arg)
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
