"""The package as it is installed: a wheel that is built here holds all it needs, and passes tests outside the clone."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.runs import CONFIGS, ROOT

SUBSET = [
    "tests/cli/test_cli.py::test_a_run_folder_holds_what_is_documented[topk]",
    "tests/cli/test_command_line.py::test_shipped_configs_can_be_copied_and_changed",
    "tests/test_imports.py::test_importing_loads_no_more_than_needed",
    "tests/nn/test_parts.py",
    "tests/report",
    "tests/modules/test_loading.py",
]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # builds leave folders beside what they build
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("sae_lightning", "configs"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder, source]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    (path,) = folder.glob("sae_lightning-*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_configs_assets_and_the_mark_of_its_types(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    configs = {
        f"sae_lightning/configs/{path.relative_to(CONFIGS).as_posix()}" for path in CONFIGS.rglob("*") if path.is_file()
    }
    assert configs <= names
    assert len(configs) > 40
    assert {"sae_lightning/py.typed", "sae_lightning/report/page.html", "sae_lightning/report/page.js"} <= names
    assert not [name for name in names if name.startswith(("tests/", "configs/", "notebooks/"))]


@pytest.mark.slow
def test_tests_pass_on_the_installed_wheel(wheel, tmp_path):
    """From a folder that holds the tests alone."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", tmp_path / "site", wheel]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    place = tmp_path / "place"
    shutil.copytree(ROOT / "tests", place / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(CONFIGS, place / "configs")
    shutil.copy(ROOT / "README.md", place)
    (place / "pytest.ini").write_text("[pytest]\nmarkers =\n    slow: slow\n    reproduction: slow\n")
    environ = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    where = subprocess.run(
        [sys.executable, "-c", "import sae_lightning; print(sae_lightning.__file__)"],
        capture_output=True,
        text=True,
        check=True,
        cwd=place,
        env=environ,
    )
    assert Path(where.stdout.strip()).is_relative_to(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-m", "not slow", "-p", "no:cacheprovider", *SUBSET],
        capture_output=True,
        text=True,
        check=False,
        cwd=place,
        env=environ,
        timeout=1500,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout
