"""What CONTRIBUTING.md says is enough: its examples, as a module outside the package, run from the command line."""

import re

import pytest

from sae_lightning import load_sae
from tests.helpers.runs import ROOT, results, run_process

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUIET = ("--trainer.enable_progress_bar", "false", "--visibility.max_samples", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with `mine.py`, in which both commands of the page have run."""
    made = tmp_path_factory.mktemp("stranger")
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    (made / "mine.py").write_text("\n\n".join(blocks), encoding="utf-8")
    commands = re.search(r"```bash\n(sae-lightning fit --model mine.*?)```", PAGE, flags=re.DOTALL)
    assert commands is not None
    for command in commands[1].replace("\\\n", " ").strip().splitlines():
        words = command.split()[1:]
        outcome = run_process(*words, *QUIET, cwd=made)
        assert outcome.returncode == 0, outcome.stderr[-3000:]
    return made


def test_its_examples_are_one_of_each_kind():
    kinds = ("Projection", "BaseSAE", "ActivationDataModule", "Metric", "RunCallback")
    assert re.findall(r"^class \w+\((\w+)\):", PAGE, flags=re.MULTILINE) == list(kinds)


def test_the_run_is_trained_and_measured(folder):
    found = results(folder / "runs" / "mine")
    assert found["model"]["class_path"] == "mine.SoftmaxSAE"
    assert found["test"]["metrics"]["test/nmse"] < 0.5
    assert 0 < found["test"]["metrics"]["test/largest_code"] <= 1
    assert found["test"]["backend"] == {"": "dense"}


def test_the_metric_is_in_table_and_page(folder):
    table = (folder / "runs" / "mine" / "results.md").read_text(encoding="utf-8")
    assert re.search(r"\| largest +\|", table), table
    pages = list((folder / "runs" / "mine").glob("*.html"))
    assert pages
    assert all("Largest code of all samples" in page.read_text(encoding="utf-8") for page in pages)


def test_its_checkpoint_names_its_arguments_and_needs_trust(folder, monkeypatch):
    path = folder / "runs" / "mine" / "checkpoints" / "last.ckpt"
    with pytest.raises(ValueError, match="give --trust mine on the command line"):
        load_sae(path)
    monkeypatch.syspath_prepend(folder)
    sae = load_sae(path, trust=["mine"])
    assert sae.init_args["temperature"] == 0.1
    assert sae.init_args["n_init_samples"] == 32_768  # of the base, by default
    assert sae.sae.projection.temperature == 0.1
