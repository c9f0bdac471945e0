"""A backend changes what a step costs, and nothing else: without the fast ones the formulas still train."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sae_lightning

ROOT = Path(__file__).parents[2]
VALUES = [
    "tests/nn",
    "tests/modules/test_presets.py",
    "tests/modules/test_comparison.py",
    "tests/modules/test_loading.py",
]


@pytest.mark.slow
def test_value_tests_pass_without_the_fast_backends(tmp_path: Path) -> None:
    package = tmp_path / "sae_lightning"
    without = shutil.ignore_patterns("__pycache__", "sparse", "sharded")
    shutil.copytree(Path(sae_lightning.__file__).parent, package, ignore=without)
    shutil.copytree(ROOT / "tests", tmp_path / "tests", ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert not (package / "backends" / "sparse").exists()
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "-m",
            "not slow and not reproduction",
            *VALUES,
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=1200,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout
    assert not (package / "backends" / "sparse").exists()
