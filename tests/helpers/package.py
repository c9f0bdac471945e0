"""The modules of the package, by name."""

from tests.helpers.runs import ROOT

PACKAGE = "sae_lightning"
FILES = sorted((ROOT / PACKAGE).rglob("*.py"))


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in FILES}
