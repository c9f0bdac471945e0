"""Signed codes count in full: an SAE that keeps the 12 codes of largest magnitude has L0 12 wherever L0 is told."""

import json
from functools import partial

import pytest
import torch

from sae_lightning import ComposedSAE, load_codes
from sae_lightning.callbacks import (
    CodesWriter,
    ConceptRecovery,
    LatentMeaning,
    RecoveryTable,
    ReportPage,
    ResultsWriter,
    TrainingDynamics,
)
from sae_lightning.metrics.functional import latent_similarity, top_examples
from sae_lightning.nn import L1, Affine
from sae_lightning.run.loggers import RunCSVLogger
from tests.helpers.data import Clusters
from tests.helpers.modules import AbsTopK
from tests.helpers.trainers import quiet_trainer

K, D_SAE = 12, 24


def sae(**changes):
    torch.manual_seed(0)
    parts = {"encoder": Affine, "projection": partial(AbsTopK, k=K), "regularizer": L1}
    return ComposedSAE(6, D_SAE, **{**parts, "gamma": 1e-3, **changes})


def test_every_count_of_a_run_is_the_number_of_codes_kept(tmp_path, capsys):
    module, data = sae(), Clusters()
    callbacks = [ConceptRecovery(), TrainingDynamics(silent_after=1), RecoveryTable(), LatentMeaning(), ReportPage()]
    trainer = quiet_trainer(
        [*callbacks, CodesWriter(), ResultsWriter()],
        max_steps=10,
        log_every_n_steps=5,
        logger=RunCSVLogger(str(tmp_path)),
    )
    trainer.fit(module, data)
    assert trainer.callback_metrics["train/l0"] == K
    trainer.validate(module, data, verbose=False)
    assert trainer.callback_metrics["val/l0"] == K
    trainer.test(module, data, verbose=False)
    assert trainer.callback_metrics["test/l0"] == K
    recovery = callbacks[0].results[""]
    assert recovery.l0.overall == K
    assert torch.equal(recovery.l0.per_concept, torch.full((5,), float(K), dtype=torch.float64))
    top = callbacks[3].results[""].top
    assert top.density == K / D_SAE
    assert (top.values < 0).any()  # a latent may fire most strongly with a negative code
    assert json.loads((tmp_path / "results.json").read_text())["test"]["metrics"]["test/l0"] == K
    assert f"| {K:.2f} |" in (tmp_path / "results.md").read_text()
    assert (tmp_path / "report.html").is_file()
    trainer.predict(module, data)
    codes, concepts = load_codes(tmp_path / "codes.safetensors")
    assert codes.values().numel() == K * len(concepts)
    torch.testing.assert_close(codes.to_dense(), module.encode(data.split("test").activations))


def test_a_latent_with_negative_codes_only_is_not_silent():
    module = sae()
    x = Clusters().split("train").activations[:50]
    module.initialize(x)
    x = x[:3]
    assert module.sae.fired(torch.tensor([[0.0, -1.0], [0.0, 0.0]])).tolist() == [False, True]
    for _ in range(3):
        module.learn(x)
    codes = module.encode(x)
    expected = torch.where((codes != 0).any(0), 0, 3)
    assert torch.equal(module.sae.batches_silent, expected)
    assert (codes.amax(0)[expected == 0] == 0).any()  # some fire with negative codes only


def test_the_l1_norm_of_signed_codes_is_the_sum_of_magnitudes():
    module = sae()
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(1))
    evaluation = module.evaluate(x)
    expected = evaluation.out.codes.abs().sum(-1).mean()
    assert evaluation.terms["regularizer"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert expected > 1.5 * evaluation.out.codes.sum(-1).mean().abs()


def test_the_strongest_examples_are_those_of_largest_magnitude():
    codes = torch.randn(500, 4, generator=torch.Generator().manual_seed(2))
    found = top_examples(codes, torch.arange(500), n=6)
    for latent in range(4):
        order = sorted(range(500), key=lambda i, latent=latent: -abs(codes[i, latent].item()))[:6]
        assert found.indices[latent].tolist() == order
        assert found.values[latent].tolist() == codes[order, latent].tolist()
    assert (found.values < 0).any()


def test_a_latent_prefers_the_concept_in_which_it_is_strongest_whatever_its_sign():
    codes = torch.tensor([[-3.0], [-3.0], [1.0], [1.0]])
    assert latent_similarity(codes, torch.tensor([0, 0, 1, 1]), 2).concept.tolist() == [0]


def test_codes_that_are_all_negative_count():
    """All pre-codes of distances without an offset are negative: k of them are kept."""
    from sae_lightning.nn import SquaredDistance

    module = sae(encoder=partial(SquaredDistance, offset_init=0.0), projection=partial(AbsTopK, k=K), regularizer=None)
    assert module.evaluate(torch.randn(10, 6)).l0() == K
