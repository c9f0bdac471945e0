"""What imports what: heavy libraries come late, and imports point one way."""

import ast
import subprocess
import sys

import pytest

from tests.conftest import ROOT, process_environment

PACKAGE = "sae_lightning"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))

# what the modules of a part may import from this package
ALLOWED = {
    "moved": set(),
    "nn.transformer": {"nn.parts"},
    "nn.vision_transformer": {"nn.parts", "nn.transformer"},
    "nn.contrastive": set(),
    "nn": {"moved", "nn"},
    "metrics.functional": {"nn", "metrics.functional"},
    "metrics": {"nn", "metrics"},
    "checkpoint": set(),
    "data": {
        *("checkpoint", "data", "files", "moved", "seal", "shipped"),
        *("nn.parts", "nn.transformer", "nn.vision_transformer"),
    },
    "plotting": {"plotting", "files", "nn.firing"},
    "geometry": {"geometry", "nn"},
    "modules": {
        *(
            "checkpoint",
            "files",
            "modules",
            "moved",
            "nn",
            "data.batch",
            "data.grammar",
            "data.ranks",
            "data.sentences",
            "data.views",
        ),
        "metrics",
    },
    "subjects": {"checkpoint", "data", "modules", "nn", "subjects"},
    "report": {"report", "data.contexts", "geometry"},
    "callbacks": {
        *("callbacks", "checkpoint", "data", "files", "folder", "geometry", "loggers", "metrics", "modules"),
        *("nn", "plotting", "report", "seal", "subjects"),
    },
    "files": set(),
    "folder": {"files"},
    "loggers": {"files", "folder"},
    "resume": {"modules"},
    "seal": set(),
    "shipped": set(),
    "config_files": {"files", "moved", "shipped"},
    "explain": set(),
    "parser": {"callbacks", "data", "explain", "files", "modules", "moved", "subjects"},
    "commands": {
        *("commands", "config_files", "data", "files", "geometry", "modules", "nn", "parser", "plotting"),
        *("report", "shipped"),
    },
    "lightning_cli": {
        *(
            "callbacks",
            "checkpoint",
            "config_files",
            "data",
            "files",
            "folder",
            "loggers",
            "modules",
            "moved",
            "parser",
        ),
        *("resume", "subjects"),
    },
    "cli": {"commands", "lightning_cli"},
    "__main__": {"cli"},
}


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}


def imported(name, source, is_package):
    """Modules of this package that a module imports anywhere, also within functions or for type checkers."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = name.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
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
        # the version may be read from anywhere above the maths
        wrong -= {PACKAGE} if part in ("callbacks", "cli") else set()
        assert not wrong, f"{name} imports {sorted(wrong)}"


def test_nothing_imports_the_command_line_but_main():
    importers = {
        name
        for name, path in MODULES.items()
        if f"{PACKAGE}.cli" in imported(name, path.read_text(), path.name == "__init__.py")
    }
    assert importers == {f"{PACKAGE}.__main__"}


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
    assert type_checked == set(sae_lightning._PUBLIC)
