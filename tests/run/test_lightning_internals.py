"""Names that are no public API are what they were when they were tried; what fails here names the one that changed."""

import ast
import inspect
import re
from importlib import import_module

import jsonargparse
import lightning.pytorch as pl
import pytest

from sae_lightning.run.lightning_internals import INTERNALS, OpenedCSVWriter
from tests.helpers.package import MODULES, PACKAGE
from tests.helpers.runs import ROOT


def found(path):
    """The object at a path: an import path, or that of an attribute of an instance, which `()` stands for."""
    if path.startswith("trainer."):
        quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
        start, names = pl.Trainer(accelerator="cpu", logger=False, **quiet), path.split(".")[1:]
    elif path.startswith("parser."):
        start, names = jsonargparse.ArgumentParser(), path.split(".")[1:]
    else:
        made = re.fullmatch(r"([\w.]+)\((\.?)\)\.(\w+)", path)
        if made:
            module, _, name = made[1].rpartition(".")
            return getattr(getattr(import_module(module), name)(*made[2]), made[3])
        names = path.split(".")
        start = import_module(names[0])
        for i in range(1, len(names)):
            try:
                start = import_module(".".join(names[: i + 1]))
            except ModuleNotFoundError:
                names = names[i:]
                break
    for name in names:
        start = getattr(start, name)
    return start


@pytest.mark.parametrize("internal", INTERNALS, ids=[internal.path for internal in INTERNALS])
def test_it_is_what_it_was(internal):
    try:
        value = found(internal.path)
    except AttributeError:
        pytest.fail(f"{internal.path} is no more; {internal.used_in} needs it: {internal.reason}")
    if internal.parameters is not None:
        now = tuple(inspect.signature(value).parameters)
        assert now == internal.parameters, f"{internal.path} takes {now}; {internal.used_in} expects others"


def test_each_is_used_where_it_is_said():
    for internal in INTERNALS:
        assert f"{PACKAGE}.{internal.used_in}" in MODULES, internal


def private_names(source):
    """Private attributes of other objects than `self` and `cls`, and private names that are imported."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
            owner = node.value
            if not (isinstance(owner, ast.Name) and owner.id in ("self", "cls")):
                names.add(node.attr)
        if isinstance(node, ast.ImportFrom) and node.module and not node.module.startswith(PACKAGE):
            names |= {alias.name for alias in node.names if re.match(r"_[a-zA-Z]", alias.name)}
    return names


def test_no_callback_and_no_command_uses_another():
    """NamedTuples' own methods apart, and what the file itself defines."""
    for name, path in MODULES.items():
        if name.split(".")[1:2] in (["callbacks"], ["cli"]):
            source = path.read_text()
            own = set(re.findall(r"def (_\w+)|self\.(_\w+)", source))
            own = {part for pair in own for part in pair}
            assert private_names(source) - own - {"_replace", "_asdict", "_fields"} == set(), name


def test_the_writer_of_csv_files_asks_the_public_methods(tmp_path):
    calls = []

    class Writer(OpenedCSVWriter):
        def open_file(self):
            calls.append("open")

        def rewrite_file(self):
            calls.append("rewrite")
            super(OpenedCSVWriter, self)._rewrite_with_new_header(["a", "step"])

    writer = Writer(str(tmp_path))
    for metrics in ({"a": 1.0}, {"b": 2.0}):
        writer.log_metrics(metrics, step=0)
        writer.save()
    assert calls == ["open", "rewrite"]


def test_versions_are_pinned_to_those_that_were_tried():
    text = (ROOT / "pyproject.toml").read_text()
    for bound in ("lightning>=2.6.6,<2.7", "torchmetrics>=1.9,<1.10", "jsonargparse[signatures]>=4.53,<4.54"):
        assert f'"{bound}"' in text
