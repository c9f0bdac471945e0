"""What imports what: heavy libraries come late, and imports point one way."""

import ast
import re
import subprocess
import sys

import pytest

from tests.helpers.package import MODULES, PACKAGE, module_name
from tests.helpers.runs import ROOT, process_environment

# what the modules of a part may import from this package
ALLOWED = {
    "moved": set(),
    "version": set(),
    "subjects.transformer": {"nn.parts"},
    "subjects.vision_transformer": {"nn.parts", "subjects.transformer"},
    "subjects.contrastive": set(),
    "nn": {"moved", "nn"},
    "backends.dense": {"nn"},
    "backends.sparse": {"backends.dense", "backends.sparse", "nn"},
    "backends.sharded": {"backends.dense", "backends.sharded", "nn"},
    "backends": {"backends", "nn"},
    "metrics.functional": {"nn", "metrics.functional"},
    "metrics": {"nn", "metrics"},
    "run.checkpoint": set(),
    "data": {
        *("run.checkpoint", "data", "run.files", "moved", "run.seal", "run.shipped"),
        *("nn.parts", "subjects.transformer", "subjects.vision_transformer"),
    },
    "plotting": {"plotting", "run.files", "nn.firing"},
    "geometry": {"geometry", "nn"},
    "modules": {
        *(
            "backends",
            "run.checkpoint",
            "run.files",
            "modules",
            "moved",
            "nn",
            "data.batch",
            "data.ranks",
        ),
        "metrics",
    },
    "subjects": {"run.checkpoint", "data", "modules", "nn", "subjects"},
    "report": {"report", "data.contexts", "geometry"},
    "callbacks": {
        *(
            "callbacks",
            "run.checkpoint",
            "data",
            "run.files",
            "run.folder",
            "run.lightning_internals",
            "geometry",
            "run.loggers",
            "metrics",
            "modules",
        ),
        *("nn", "plotting", "report", "run.seal", "subjects", "version"),
    },
    "run.files": set(),
    "run.folder": {"run.files"},
    "run.lightning_internals": set(),
    "run.loggers": {"run.files", "run.folder", "run.lightning_internals"},
    "cli.resume": {"modules"},
    "run.seal": set(),
    "run.shipped": set(),
    "cli.config_files": {"run.files", "moved", "run.shipped"},
    "cli.explain": set(),
    "cli.parser": {
        *("callbacks", "data", "cli.explain", "run.files", "run.lightning_internals", "modules", "moved", "subjects"),
    },
    "cli.commands": {
        *(
            "cli.commands",
            "callbacks",
            "cli.config_files",
            "data",
            "run.files",
            "geometry",
            "modules",
            "nn",
            "cli.parser",
            "plotting",
        ),
        *("report", "run.shipped"),
    },
    "cli.run_callbacks": {"run.files"},
    "cli.run_folder": {"callbacks", "cli.parser", "cli.resume", "run.files", "run.folder", "run.loggers"},
    "cli.checkpoint_path": {"callbacks", "cli.parser", "cli.resume", "modules", "moved", "run.checkpoint"},
    "cli.lightning_cli": {
        *("callbacks", "cli.checkpoint_path", "cli.parser", "cli.resume", "cli.run_callbacks", "cli.run_folder"),
        *("data", "modules", "moved", "run.folder", "run.lightning_internals", "run.loggers"),
    },
    "cli.training": {"cli.config_files", "cli.lightning_cli", "cli.parser", "cli.resume"},
    "cli": {"cli.commands", "cli.training", "version"},
    "__main__": {"cli"},
    "run": set(),
}


def imports(name, source, is_package):
    """All that a module imports, also within functions or for type checkers: modules, with a name of each or None."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((base, alias.name) for alias in node.names)


def imported(name, source, is_package):
    """Modules of this package that a module imports."""
    found = set()
    for base, member in imports(name, source, is_package):
        whole = f"{base}.{member}"
        found.add(whole if whole in MODULES else base)
    return {target for target in found if target.split(".")[0] == PACKAGE}


def within(target, part):
    whole = f"{PACKAGE}.{part}"
    return target == whole or target.startswith(f"{whole}.")


def part_of(name):
    return next((part for part in ALLOWED if within(name, part)), None)


def test_imports_are_found_in_every_form():
    source = """
import sae_lightning.nn.firing as f, os
from sae_lightning import callbacks, __version__
from sae_lightning.nn import Simplex
from . import spade
from ..data.batch import ActivationBatch
def late():
    from sae_lightning.cli import main
"""
    assert imported("sae_lightning.modules.base", source, False) == {
        "sae_lightning.nn.firing",
        "sae_lightning.callbacks",
        "sae_lightning",
        "sae_lightning.nn",
        "sae_lightning.modules.spade",
        "sae_lightning.data.batch",
        "sae_lightning.cli",
    }


def test_every_module_belongs_to_a_part():
    assert {name for name in MODULES if part_of(name) is None} == {PACKAGE}


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_one_way(part):
    modules = {name: path for name, path in MODULES.items() if part_of(name) == part}
    assert modules
    for name, path in modules.items():
        targets = imported(name, path.read_text(), path.name == "__init__.py")
        wrong = {target for target in targets if not any(within(target, allowed) for allowed in ALLOWED[part])}
        assert not wrong, f"{name} imports {sorted(wrong)}"


def circles(imports):
    """Groups of modules that import each other, directly or by way of others."""

    def reached(name):
        found, left = set(), [name]
        while left:
            new = imports.get(left.pop(), set()) - found
            found |= new
            left += new
        return found

    reach = {name: reached(name) for name in imports}
    groups = {frozenset(other for other in reach[name] if name in reach.get(other, ())) for name in imports}
    return sorted(sorted(group) for group in groups if group)


def test_circles_are_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": set(), "e": {"e"}}) == [["b", "c"], ["e"]]


def test_no_modules_import_each_other():
    """Neither at once, nor late within a function, nor for type checkers."""
    imports = {name: imported(name, path.read_text(), path.name == "__init__.py") for name, path in MODULES.items()}
    assert circles(imports) == []


# kinds of data, and which others each of them builds on
KINDS = {
    "synthetic": set(),
    "sources": set(),
    "activations": {"sources"},
    "images": {"sources"},
    "formal_language": {"activations"},
}


def kind_of(name):
    """The kind of data that a module is about; None for what all of them share."""
    return next((kind for kind in KINDS if within(name, f"data.{kind}")), None)


def test_kinds_of_data_build_on_few_others():
    seen = set()
    for name, path in MODULES.items():
        if within(name, "data") and name != f"{PACKAGE}.data":  # which offers all of them
            kind = kind_of(name)
            seen.add(kind)
            others = {kind_of(target) for target in imported(name, path.read_text(), path.name == "__init__.py")}
            wrong = others - {None, kind} - KINDS.get(kind, set())
            assert not wrong, f"{name} imports {sorted(wrong)}"
    assert seen == {None, *KINDS}


def test_nothing_imports_the_command_line_but_main():
    importers = {
        name
        for name, path in MODULES.items()
        if f"{PACKAGE}.cli" in imported(name, path.read_text(), path.name == "__init__.py")
    }
    assert importers == {f"{PACKAGE}.__main__"}


def test_nothing_imports_a_test_module_or_a_conftest():
    for path in sorted((ROOT / "tests").rglob("*.py")):
        name = module_name(path)
        found = {f"{base}.{member}" for base, member in imports(name, path.read_text(), path.name == "__init__.py")}
        wrong = {target for target in found if re.match(r"tests\.(.*\.)?(test_|conftest\b)", target)}
        assert not wrong, f"{name} imports {sorted(wrong)}: what several modules need belongs in tests/helpers"


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import sae_lightning", "torch numpy lightning lightning_fabric torchmetrics matplotlib sklearn jsonargparse"),
        ("import sae_lightning.nn", "lightning lightning_fabric pytorch_lightning torchmetrics matplotlib sklearn"),
        (
            "import sae_lightning.metrics.functional",
            "lightning lightning_fabric pytorch_lightning torchmetrics matplotlib sklearn",
        ),
    ],
)
def test_importing_loads_no_more_than_needed(statement, heavy):
    code = f"{statement}\nimport sys\nassert 'sae_lightning' in sys.modules\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT, env=process_environment()
    )
    assert not set(heavy.split()) & set(done.stdout.split())


def test_public_names_exist_and_are_listed():
    import sae_lightning

    assert set(dir(sae_lightning)) == set(sae_lightning.__all__)
    for name in sae_lightning.__all__:
        assert getattr(sae_lightning, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'GatedSAE'"):
        sae_lightning.GatedSAE  # noqa: B018
    type_checked = imported(PACKAGE, MODULES[PACKAGE].read_text(), True)
    assert type_checked == {*sae_lightning._PUBLIC, f"{PACKAGE}.version"}
