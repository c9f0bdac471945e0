"""Formal languages through the command line: the language model first, then SAEs on its activations."""

import pytest
import torch

from sae_lightning import load_sae
from sae_lightning.data import FormalLanguageDataModule
from tests.helpers.runs import CONFIGS, QUIET, last, results, run_cli

FOLDER = CONFIGS / "formal_language"
GRAMMARS = FOLDER / "grammars"
LITTLE = ["--trainer.max_steps", 20, "--trainer.val_check_interval", 20, "--trainer.log_every_n_steps", 5, *QUIET]
SMALL_LM = [
    "--model.width",
    16,
    "--model.n_positions",
    32,
    "--data.max_length",
    31,
    "--data.n_val",
    50,
    "--data.n_test",
    50,
]
SMALL_LM += ["--grammar.n_samples", 10]
SMALL_DATA = ["--data.max_length", 31, "--data.n_val", 200, "--data.n_test", 200, "--data.n_fidelity", 20]
SMALL_DATA += ["--data.batch_size", 64]


def language_model(run_dir, *args, name="english"):
    grammar = ["--data.grammar", GRAMMARS / f"{name}.pcfg"]
    return run_cli("fit", "-c", FOLDER / "gpt.yaml", *grammar, *SMALL_LM, *LITTLE, "--run_dir", run_dir, *args)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a language model's run."""
    folder = tmp_path_factory.mktemp("formal") / "gpt"
    outcome = language_model(folder)
    assert outcome.code == 0, outcome.err[-3000:]
    return folder


def test_a_language_model_reports_loss_floor_and_grammar(trained):
    outcome = run_cli(
        "test", "-c", FOLDER / "gpt.yaml", *SMALL_LM, *QUIET, "--run_dir", trained, "--ckpt_path", last(trained)
    )
    assert outcome.code == 0, outcome.err[-3000:]
    for command, stage in (("fit", "val"), ("test", "test")):
        metrics = results(trained)[command]["metrics"]
        keys = {f"{stage}/{key}" for key in ("loss", "entropy_floor", "excess_loss", "grammatical")}
        assert keys <= metrics.keys()
        assert metrics[f"{stage}/loss"] > metrics[f"{stage}/entropy_floor"] > 2
    assert results(trained)["fit"]["samples_seen"] > 20 * 128 * 7  # tokens


def test_a_language_model_goes_on_where_it_stopped(trained, tmp_path):
    half = tmp_path / "half"
    assert language_model(half, "--trainer.max_steps", 10, "--checkpoint.every_n_steps", 10).code == 0
    outcome = language_model(half, "--ckpt_path", last(half))
    assert outcome.code == 0, outcome.err[-3000:]
    whole, resumed = (torch.load(last(folder), weights_only=True)["state_dict"] for folder in (trained, half))
    for name, weight in whole.items():
        assert torch.equal(weight, resumed[name]), name


@pytest.mark.slow
def test_saes_on_its_activations_are_compared(trained, tmp_path):
    run = tmp_path / "compare"
    args = ["-c", FOLDER / "compare.yaml", "--data.checkpoint", last(trained), *SMALL_DATA, *LITTLE, "--run_dir", run]
    assert run_cli("fit", *args).code == 0
    outcome = run_cli("test", *args, "--ckpt_path", last(run))
    assert outcome.code == 0, outcome.err[-3000:]
    metrics = results(run)["test"]["metrics"]
    for member in ("spade", "relu", "jumprelu", "topk"):
        for key in ("cross_entropy", "clean", "zero", "mean", "recovered_from_zero", "recovered_from_mean", "kl"):
            assert f"{member}/test/fidelity/{key}" in metrics
        assert metrics[f"{member}/test/fidelity/kl"] > 0
        assert f"{member}/test/f1/conjunction" in metrics
        assert (run / "figures" / member / "test" / "principal_components.png").is_file()
    assert len({metrics[f"{m}/test/fidelity/clean"] for m in ("spade", "relu", "jumprelu", "topk")}) == 1
    assert (run / "figures" / "test" / "singular_values.png").is_file()
    assert "conjunction" in outcome.out


def test_fidelity_is_that_of_the_saved_sae(trained, tmp_path):
    run = tmp_path / "spade"
    args = ["-c", FOLDER / "spade.yaml", "--data.checkpoint", last(trained), *SMALL_DATA, *LITTLE, "--run_dir", run]
    args += ["--model.d_sae", 32]
    assert run_cli("fit", *args).code == 0
    assert run_cli("test", *args, "--ckpt_path", last(run)).code == 0
    sae = load_sae(last(run))
    data = FormalLanguageDataModule(str(last(trained)), max_length=31, n_fidelity=20, seed=0)
    host = data.host()
    (batch,) = host.batches
    logits = host.logits(batch, lambda x: sae(x).x_hat)
    wanted = torch.nn.functional.cross_entropy(logits, batch.targets[batch.targets >= 0])
    assert results(run)["test"]["metrics"]["test/fidelity/cross_entropy"] == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--data.checkpoint", "none.ckpt"], "checkpoint must be a file, but there is none at 'none.ckpt'"),
        (["--data.layer", "blocks.9"], "layer must be one of the model's ['embed', 'embed.tokens'"),
        (["--data.grammar", GRAMMARS / "dyck.pcfg"], "is of another one"),
        (["--data.max_length", 32], "max_length must be below the model's n_positions = 32, but is 32"),
    ],
)
def test_activations_that_cannot_be_had_are_refused(trained, tmp_path, args, message):
    run = tmp_path / "run"
    given = ["-c", FOLDER / "spade.yaml", "--data.checkpoint", last(trained), *SMALL_DATA, "--run_dir", run, *args]
    outcome = run_cli("fit", *given)
    assert outcome.code == 2
    assert message in outcome.err
    assert not run.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S -> 'a' [0.5]", "line 1: the probabilities of S must sum to 1, but sum to 0.5"),
        ("S -> S S [0.6] | 'a' [0.4]", "line 1: sentences must have a finite expected length"),
        ("S -> A [1.0]", "line 1: A is used, but has no rule"),
        (None, "mine.pcfg' cannot be read: No such file or directory"),
    ],
)
def test_unsound_grammars_are_refused(tmp_path, text, message):
    grammar = tmp_path / "mine.pcfg"
    if text is not None:
        grammar.write_text(text)
    outcome = run_cli("fit", "-c", FOLDER / "gpt.yaml", "--data.grammar", grammar, "--run_dir", tmp_path / "run")
    assert outcome.code == 2
    assert message in outcome.err


def test_a_language_models_checkpoint_is_no_sae(trained):
    outcome = run_cli(
        "test", "-c", FOLDER / "spade.yaml", "--data.checkpoint", last(trained), "--ckpt_path", last(trained)
    )
    assert outcome.code == 2
    assert "LanguageModel" in outcome.err
