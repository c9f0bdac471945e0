"""The functions need torch only, and stay importable where torchmetrics and lightning are not."""

import subprocess
import sys
from pathlib import Path

import pytest

import sae_lightning.metrics as package

ROOT = Path(__file__).parents[2]


def test_functions_import_neither_lightning_nor_torchmetrics():
    modules = [
        path.stem for path in (ROOT / "sae_lightning/metrics/functional").glob("*.py") if path.stem != "__init__"
    ]
    assert "l0" in modules
    code = (
        "import sys, importlib\n"
        "import sae_lightning.metrics.functional as f\n"
        f"for m in {modules!r}: importlib.import_module(f.__name__ + '.' + m)\n"
        "heavy = {'lightning', 'pytorch_lightning', 'lightning_utilities', 'torchmetrics', 'sklearn', 'matplotlib'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_public_names():
    from sae_lightning.metrics import functional

    assert set(package.__all__) == set(package._MODULES) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    for name in functional.__all__:
        assert hasattr(functional, name)
    with pytest.raises(AttributeError, match="no attribute 'Accuracy'"):
        package.Accuracy  # noqa: B018
