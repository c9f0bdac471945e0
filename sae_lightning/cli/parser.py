"""The command line's parser: one-line errors, and help that names every argument."""

import inspect
import os
import sys
from argparse import HelpFormatter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NoReturn

import docstring_parser
import lightning.pytorch as pl
from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from sae_lightning import callbacks, data, modules, subjects
from sae_lightning.cli.explain import one_line
from sae_lightning.data import sources
from sae_lightning.data.activations import hosts
from sae_lightning.data.datamodule import SeededDataModule
from sae_lightning.data.sources import UnreadableError
from sae_lightning.modules.run import RunModule
from sae_lightning.moved import current_text
from sae_lightning.run.files import EncodingError, WriteError, read_text
from sae_lightning.run.lightning_internals import configs_read_by, has_argument, options_of


def _public(package: ModuleType, base: type) -> list[type]:
    """The concrete classes of a kind that a package offers."""
    offered = [getattr(package, name) for name in package.__all__]
    found = [cls for cls in offered if isinstance(cls, type) and issubclass(cls, base) and not inspect.isabstract(cls)]
    return [cls for cls in found if cls not in (base, modules.BaseSAE, modules.AffineSAE)]


MODELS = [*_public(modules, RunModule), *_public(subjects, RunModule)]
DATA = _public(data, SeededDataModule)
OPTIONAL_CALLBACKS = [callbacks.ResampleDeadLatents, callbacks.Throughput]
CLASSES: dict[str, list[type]] = {
    "model": MODELS,
    "data": DATA,
    "trainer.callbacks": [*OPTIONAL_CALLBACKS, *_public(pl.callbacks, pl.Callback)],
    "host": _public(hosts, hosts.Host),
    "source": [*_public(sources, sources.Source), *_public(sources, sources.StreamedSource)],
}
"""What may be chosen where an argument takes a class."""


class OneLineErrors:
    """Mixin of parsers: reads configs as UTF-8 and says in one line what is wrong.

    Attributes:
        command: The command whose arguments are parsed, for messages.
    """

    command = ""

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse as the base does, with configs in UTF-8 whatever the system's encoding is."""
        with configs_in_utf8():
            return super().parse_args(*args, **kwargs)  # type: ignore[misc]

    def error(self, message: str, ex: Exception | None = None) -> None:
        """End with one line: what is wrong, where, what was probably meant, and where to read more."""
        assert isinstance(self, ArgumentParser)
        if "_ARGCOMPLETE" in os.environ or not self.exit_on_error:
            super().error(message, ex)  # type: ignore[misc]
        told = one_line(message, CLASSES, options_of(self))
        fail(f"{told} (`sae-lightning {self.command} --help` names every argument)")


class CommandParser(OneLineErrors, ArgumentParser):  # type: ignore[misc]
    """The parser of a command that trains nothing.

    Args:
        command: Its name.
        kwargs: Passed on.
    """

    def __init__(self, *args: Any, command: str = "", **kwargs: Any) -> None:
        super().__init__(*args, prog=f"sae-lightning {command}", **kwargs)
        self.command = command


class SAEParser(OneLineErrors, LightningArgumentParser):  # type: ignore[misc]
    """The parser of fit, validate, test and predict, whose help names every class's arguments."""

    def add_lightning_class_args(self, lightning_class: Any, nested_key: str, *args: Any, **kwargs: Any) -> list[str]:
        """Leave the model optional."""
        if nested_key == "model":  # a checkpoint knows its own
            kwargs["required"] = False
        return super().add_lightning_class_args(lightning_class, nested_key, *args, **kwargs)

    def add_method_arguments(self, *args: Any, **kwargs: Any) -> list[str]:
        """Let `validate` and `test` leave the printing of results to our own table."""
        added: list[str] = super().add_method_arguments(*args, **kwargs)
        if "verbose" in added:
            self.set_defaults({"verbose": False})
        return added

    def format_help(self, formatter: HelpFormatter | None = None) -> str:
        """Add the arguments of every model and data module."""
        text: str = super().format_help(formatter)
        if not has_argument(self, "model"):
            return text
        sections = [_class_help(f"--model {cls.__name__}", "--model", cls) for cls in MODELS]
        sections += [_class_help(f"--data {cls.__name__}", "--data", cls) for cls in DATA]
        sections += [
            _class_help(f"--trainer.callbacks+={cls.__name__}", "--trainer.callbacks", cls)
            for cls in OPTIONAL_CALLBACKS
        ]
        return "\n".join([text, *sections])


def fail(message: str, status: int = 2) -> NoReturn:
    """End with a message and a status, without the usage of hundreds of arguments."""
    sys.stderr.write(f"error: {message}\n")
    sys.exit(status)


@contextmanager
def configs_in_utf8() -> Iterator[None]:
    """Read configuration files as UTF-8 wherever the parser meets one, and end with the name of one that is not.

    Classes that an earlier version had elsewhere are named as they are now.
    """

    def read_file(path: Any, read: Callable[[Any], str]) -> str:
        local = os.path.isfile(path.absolute)  # or standard input, or a URL
        return current_text(read_text(path.absolute) if local else read(path))

    with configs_read_by(read_file):
        try:
            yield
        except EncodingError as error:
            fail(str(error))


def innermost(error: BaseException) -> str:
    """What a constructor said, which the parser wraps; errors that name a file are not unwrapped further."""
    while error.__cause__ is not None and not isinstance(error, (WriteError, UnreadableError)):
        error = error.__cause__
    return str(error)


def _class_help(title: str, prefix: str, cls: type) -> str:
    """The arguments of a class, from its signature and docstring."""
    doc = docstring_parser.parse(inspect.getdoc(cls) or "")
    shared = docstring_parser.parse(inspect.getdoc(cls.__init__) or "")  # type: ignore[misc]  # of `**kwargs`
    arguments = [param for param in (*doc.params, *shared.params) if param.args[0] != "attribute"]
    meaning = {param.arg_name: " ".join((param.description or "").split()) for param in arguments}
    lines = [f"{title}: {doc.short_description}"]
    for name, parameter in inspect.signature(cls).parameters.items():
        if name == "d_in":  # linked to the data
            continue
        default = parameter.default
        shown = getattr(default, "__name__", default)
        note = "required" if default is inspect.Parameter.empty else f"default: {shown}"
        lines.append(f"  {prefix}.{name}\n      {meaning.get(name, '')} ({note})")
    return "\n".join(lines) + "\n"
