"""ConceptRecovery logs what the functional metrics say about the whole split."""

import json

import numpy as np
import pytest
import torch

from sae_lightning import SeparabilityDataModule, TensorDataModule, load_sae
from sae_lightning.callbacks import ConceptRecovery
from sae_lightning.metrics import ConceptDiscovery, functional
from tests.helpers.runs import QUIET, run_cli

CONCEPTS = [f"C{i}" for i in range(6)]
BASE = ["--model.d_sae", 12, "--model.n_init_samples", 64, "--trainer.max_steps", 10, "--trainer.max_epochs", -1]
BASE += ["--trainer.num_sanity_val_steps", 0, "--trainer.val_check_interval", 10, *QUIET]
BASE += ["--trainer.check_val_every_n_epoch", "null"]
KINDS = {
    "SpaDE": ["--model", "SpaDE", *BASE],
    "TopKSAE": ["--model", "TopKSAE", *BASE, "--model.k", 4],
}


def by_hand(sae, x, concepts, names, stage, top_n=5, discovery_samples=1024):
    """Every number that should be logged, from the whole split at once."""
    n = len(names)
    with torch.no_grad():
        evaluation = sae.evaluate(x)
    inputs, (x_hat, codes, _), terms, _ = evaluation
    nmse, l0 = functional.normalized_mse(inputs, x_hat, concepts, n), functional.l0(codes, concepts, n)
    values = {
        **terms,
        "l0": l0.overall,
        "nmse": nmse.overall,
        "norm_ratio": nmse.norm_ratio,
        "dead_latents": functional.dead_latents(codes).fraction,
        "stable_rank_codes": functional.code_similarity(codes, concepts, n).stable_rank,
        "stable_rank_latents": functional.latent_similarity(codes, concepts, n).stable_rank,
    }
    if n:
        f1 = functional.concept_f1(codes, concepts, n, top_n)
        mono = functional.monosemanticity(codes, concepts, n)
        values |= {
            "f1": f1.overall,
            "best_f1": f1.best.mean(),
            "purity": f1.purity,
            "monosemanticity": mono.mean,
            "monosemanticity_std": mono.std,
            "cross_concept_cosine": functional.latent_similarity(codes, concepts, n).cross_concept,
        }
        for i, name in enumerate(names):
            values[f"f1/{name}"] = f1.top_n_mean[i]
            values[f"f1_std/{name}"] = f1.top_n_std[i]
            values[f"best_f1/{name}"] = f1.best[i]
            values[f"l0/{name}"] = l0.per_concept[i]
            values[f"nmse/{name}"] = nmse.per_concept[i]
        if stage == "test" and concepts.ndim == 1:
            clustered = ConceptDiscovery(sae.d_sae, n, discovery_samples)
            clustered.update(codes, concepts, x)
            discovery = clustered.compute()
            values |= {"discovery_rand": discovery.adjusted_rand, "discovery_clusters": discovery.n_clusters}
    return {f"{stage}/{key}": float(value) for key, value in values.items()}


def check(found, expected):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        if np.isnan(value):
            assert found[key] is None, key
        else:
            assert found[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key


@pytest.mark.parametrize("name", ["spade", "topk"])
@pytest.mark.parametrize(("command", "stage"), [("fit", "val"), ("validate", "val"), ("test", "test")])
def test_numbers_of_an_experiment_equal_those_of_the_whole_split(name, command, stage, experiment):
    run_dir = experiment(name)
    data = SeparabilityDataModule(n_per_concept=5000, n_val_per_concept=100, n_test_per_concept=100, seed=0)
    samples = data.split(stage)
    sae = load_sae(run_dir / "checkpoints" / "last.ckpt")
    expected = by_hand(sae, samples.activations, samples.concepts, CONCEPTS, stage)
    check(json.loads((run_dir / "results.json").read_text())[command]["metrics"], expected)


def write_data(folder, labels):
    """500 samples of 4 features, with labels of one kind."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 3, 500)
    x = (rng.standard_normal((500, 4)) + 3 * np.eye(4)[kind]).astype(np.float32)
    np.save(folder / "x.npy", x)
    args = ["--data", "TensorDataModule", "--data.path", folder / "x.npy", "--data.batch_size", 32]
    args += ["--data.eval_batch_size", 16]
    names = ["C0", "C1", "C2"]
    if labels == "none":
        return args, []
    if labels == "some":
        kind = np.where(rng.random(500) < 0.5, -1, kind)
    elif labels == "a gap":  # concept 1 has no sample
        kind = np.where(kind == 1, 2, kind)
    elif labels == "overlapping":
        kind = np.stack([kind == 0, kind != 1, x[:, 3] > 0], axis=1)
    elif labels == "named":
        names = ["red", "green apples", "a/b"]
        args += ["--data.concept_names", json.dumps(names)]
    np.save(folder / "y.npy", kind)
    return [*args, "--data.labels", folder / "y.npy"], names


@pytest.mark.parametrize("model", ["SpaDE", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "SpaDE")])
@pytest.mark.parametrize("labels", ["none", "some", "a gap", "overlapping", "named"])
def test_every_kind_of_label_works_from_fit_to_predict(labels, model, tmp_path):
    data, names = write_data(tmp_path, labels)
    run_dir = tmp_path / "run"
    args = [*KINDS[model], *data, "--run_dir", run_dir]
    checkpoint = run_dir / "checkpoints" / "last.ckpt"
    for command in ("fit", "test", "predict"):
        given = [] if command == "fit" else ["--ckpt_path", checkpoint]
        outcome = run_cli(command, *args, *given)
        assert outcome.code == 0, outcome.err[-2000:]

    labels_path = str(tmp_path / "y.npy") if labels != "none" else None
    source = TensorDataModule(str(tmp_path / "x.npy"), labels_path, concept_names=names or None, seed=0)
    assert source.concept_names == names
    results = json.loads((run_dir / "results.json").read_text())
    for command, stage in {"fit": "val", "test": "test"}.items():
        samples = source.split(stage)
        assert len(samples) == 50
        expected = by_hand(load_sae(checkpoint), samples.activations, samples.concepts, names, stage)
        check(results[command]["metrics"], expected)
    assert (run_dir / "figures" / "test" / "latent_similarity.png").is_file()
    assert (run_dir / "figures" / "test" / "concept_f1.png").is_file() == bool(names)
    assert (run_dir / "figures" / "test" / "code_similarity.png").is_file() == (labels not in ("none", "overlapping"))
    assert not (run_dir / "figures" / "test" / "receptive_fields.png").exists()  # four dimensions
    table = (run_dir / "results.md").read_text()
    assert all(name in table for name in names)


def test_large_saes_go_without_similarities(tmp_path):
    data, _ = write_data(tmp_path, "all")
    run_dir = tmp_path / "run"
    args = [*KINDS["SpaDE"], *data, "--run_dir", run_dir]
    found = {}
    for limit in (12, 11):
        assert run_cli("fit", *args, "--overwrite", "true", "--recovery.similarity_max_latents", limit).code == 0
        found[limit] = set(json.loads((run_dir / "results.json").read_text())["fit"]["metrics"])
        assert (run_dir / "figures" / "val" / "latent_similarity.png").exists() == (limit == 12)
    quadratic = {"val/stable_rank_codes", "val/stable_rank_latents", "val/cross_concept_cosine"}
    assert found[12] - found[11] == quadratic
    assert not found[11] - found[12]


def test_top_n_and_discovery_samples_reach_the_metrics(tmp_path):
    data, names = write_data(tmp_path, "all")
    run_dir = tmp_path / "run"
    args = [*KINDS["SpaDE"], *data, "--run_dir", run_dir, "--recovery.top_n", 2, "--recovery.discovery_samples", 20]
    assert run_cli("fit", *args).code == 0
    assert run_cli("test", *args, "--ckpt_path", run_dir / "checkpoints" / "last.ckpt").code == 0
    metrics = json.loads((run_dir / "results.json").read_text())["test"]["metrics"]
    for name in names:
        assert metrics[f"test/f1/{name}"] <= metrics[f"test/best_f1/{name}"]
    assert 1 <= metrics["test/discovery_clusters"] <= 20

    samples = TensorDataModule(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), seed=0).split("test")
    expected = by_hand(
        load_sae(run_dir / "checkpoints" / "last.ckpt"), samples.activations, samples.concepts, names, "test", 2, 20
    )
    check(metrics, expected)


def test_more_latents_are_asked_for_than_there_are(tmp_path):
    data, _ = write_data(tmp_path, "all")
    args = [*KINDS["SpaDE"], "--model.d_sae", 3, *data, "--run_dir", tmp_path / "run", "--recovery.top_n", 5]
    assert run_cli("fit", *args).code == 0


@pytest.mark.parametrize(("argument", "least"), [("top_n", 1), ("discovery_samples", 2)])
def test_arguments_are_checked(argument, least):
    ConceptRecovery(**{argument: least})
    with pytest.raises(ValueError, match=f"{argument} must be at least {least}, but is {least - 1}"):
        ConceptRecovery(**{argument: least - 1})
