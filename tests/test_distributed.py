"""Two processes (DDP with gloo on the CPU) train one model, and measure what one process measures."""

import pytest
import torch
from safetensors.torch import save_file

from sae_lightning import SeparabilityDataModule, load_codes, load_module
from tests.helpers.runs import MEMBERS, fast, results, run_cli, run_process

pytestmark = pytest.mark.slow

BATCH_SIZE = 4  # so small that some latents stay silent
TWO = ["--trainer.accelerator", "cpu", "--trainer.devices", 2, "--trainer.strategy", "ddp"]
ODD = ["--data.n_test_per_concept", 101, "--data.n_val_per_concept", 33, "--data.eval_batch_size", 64]
ODD += ["--data.batch_size", BATCH_SIZE]
PLAIN = ["--figures.on_validation", "false", "--figures.max_saes", 0, "--receptive_fields.max_saes", 0]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """compare.yaml, fitted and tested by two processes."""
    run_dir = tmp_path_factory.mktemp("distributed") / "two"
    args = [*fast("compare", run_dir), *ODD, *PLAIN, *TWO]
    save = ["--trainer.callbacks+=tests.helpers.probes.SaveRanks", "--trainer.callbacks.folder", run_dir / "ranks"]
    run_process("fit", *args, *save)
    run_process("test", *args, "--ckpt_path", run_dir / "checkpoints" / "last.ckpt")
    return run_dir


@pytest.fixture(scope="module")
def one(two, tmp_path_factory):
    """The same weights, validated and tested by one process."""
    run_dir = tmp_path_factory.mktemp("distributed") / "one"
    args = [*fast("compare", run_dir), *ODD, *PLAIN, "--ckpt_path", two / "checkpoints" / "last.ckpt"]
    for command in ("validate", "test"):
        outcome = run_cli(command, *args)
        assert outcome.code == 0, outcome.err[-2000:]
    return run_dir


def test_two_processes_leave_one_run(two):
    assert {path.name for path in (two / "checkpoints").iterdir()} == {"last.ckpt", "step=20.ckpt"}
    assert {"config.yaml", "metrics.csv", "results.json", "results.md"} <= {path.name for path in two.iterdir()}
    found = results(two)
    for command in ("fit", "test"):
        assert found[command]["processes"] == 2
        assert found[command]["samples_seen"] == 20 * BATCH_SIZE * 2
    assert len((two / "metrics.csv").read_text().splitlines()) == 1 + 4 + 2 + 1
    assert set(load_module(two / "checkpoints" / "last.ckpt").saes()) == set(MEMBERS)


def test_both_ranks_hold_the_same_weights_and_counters(two):
    first, second = (torch.load(two / "ranks" / f"rank-{rank}.pt", weights_only=True) for rank in (0, 1))
    saved = load_module(two / "checkpoints" / "last.ckpt").saes()
    assert first.keys() == second.keys() == saved.keys() == set(MEMBERS)
    for member, sae in saved.items():
        for key, value in sae.state_dict().items():
            assert torch.equal(first[member][key], second[member][key]), f"{member} {key}"
            assert torch.equal(first[member][key], value), f"{member} {key}"
    assert first["topk"]["sae.batches_silent"].max() > 0


@pytest.mark.parametrize(("command", "stage"), [("test", "test"), ("validate", "val")])
def test_measurements_do_not_depend_on_the_number_of_processes(one, two, command, stage):
    expected = results(one)[command]["metrics"]
    # the validation at the end of fit has seen the weights that were saved
    found = results(two)["fit" if command == "validate" else command]["metrics"]
    assert len(expected) > 4 * 40
    assert all(f"/{stage}/" in key for key in expected)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, rel=1e-6, abs=1e-6, nan_ok=True), key


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path):
    """From memory, where the ranks share out the batches of one process. (Of a stream each rank draws its own.)"""
    samples = SeparabilityDataModule(n_per_concept=1000, n_val_per_concept=200, n_test_per_concept=100, seed=0).split(
        "val"
    )
    path = tmp_path / "x.safetensors"
    save_file({"x": samples.activations, "labels": samples.concepts}, path)
    data = ["--data", "TensorDataModule", "--data.path", path, "--data.key", "x", "--data.labels", path]
    data += ["--data.labels_key", "labels"]
    args = [*fast("compare", tmp_path / "two"), *PLAIN, *data]
    run_process("fit", *args, "--data.batch_size", BATCH_SIZE, *TWO)
    assert run_cli("fit", *args, "--data.batch_size", 2 * BATCH_SIZE, "--run_dir", tmp_path / "one").code == 0
    found, expected = (load_module(tmp_path / run / "checkpoints" / "last.ckpt").state_dict() for run in ("two", "one"))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-4, msg=f"{key} differs")


def test_ranks_write_codes_of_interleaved_samples(two, one, tmp_path):
    run_dir = two.parent / "codes"
    args = [*ODD, "--ckpt_path", two / "checkpoints" / "last.ckpt"]
    run_process("predict", *fast("compare", run_dir), *args, *TWO)
    whole = tmp_path / "whole"
    assert run_cli("predict", *fast("compare", whole), *args).code == 0
    for member in MEMBERS:
        folder = run_dir / "members" / member
        codes, concepts = load_codes(whole / "members" / member / "codes.safetensors")
        parts = [load_codes(folder / f"codes-{rank}.safetensors") for rank in (0, 1)]
        assert sum(len(part[1]) for part in parts) == len(concepts) == 606
        for rank, (part, labels) in enumerate(parts):
            torch.testing.assert_close(part.to_dense(), codes.to_dense()[rank::2], rtol=1e-5, atol=1e-6)
            assert torch.equal(labels, concepts[rank::2])


def test_a_nan_on_one_rank_stops_both(tmp_path):
    """Neither hangs: the other rank is ended by the launcher."""
    args = ["--model", "SpaDE", "--model.d_sae", 8, "--model.n_init_samples", 64, "--trainer.max_steps", 30]
    args += ["--data", "tests.helpers.probes.DamagedStream", *PLAIN, *TWO]
    done = run_process("fit", *args, "--run_dir", tmp_path / "run", check=False, timeout=60)
    assert done.returncode != 0
    assert "activations must be finite, but batch 7 of the training stream (rank 1) holds nan at row 2" in done.stderr
