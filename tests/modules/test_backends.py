"""Which backend runs an SAE, what says so, and losses of one's own."""

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Adam

from sae_lightning.modules import BaseSAE, ComposedSAE, ReLUSAE, load_sae
from sae_lightning.nn import L1, Affine, Orthant
from tests.helpers.data import D_IN
from tests.helpers.modules import PRESETS, make
from tests.helpers.runs import CONFIGS, QUIET, run_process
from tests.helpers.trainers import fit


class Twice(Orthant):
    """Somebody's projection, for which no backend has a rule."""

    def forward(self, pre_codes: Tensor) -> Tensor:
        return 2 * super().forward(pre_codes)


class Orthogonal(ReLUSAE):
    """An SAE with a term that reads the dictionary only."""

    def loss_terms(self, x: Tensor, target: Tensor, out: Any) -> dict[str, Tensor]:
        atoms = torch.nn.functional.normalize(self.sae.decoder.weight, dim=-1)
        cosines = (atoms @ atoms.T).tril(-1)
        return {**super().loss_terms(x, target, out), "overlap": cosines.square().mean()}

    def weights(self) -> dict[str, float]:
        return {**super().weights(), "overlap": 100.0}


def overlap(sae: BaseSAE) -> float:
    atoms = torch.nn.functional.normalize(sae.sae.decoder.weight.detach(), dim=-1)
    return float((atoms @ atoms.T).fill_diagonal_(0).square().sum() / 2 / len(atoms) ** 2)


@pytest.mark.parametrize("name", PRESETS)
def test_auto_is_sparse_on_a_cpu(name: str) -> None:
    sae = make(name)
    assert sae.running("cpu").name == "sparse"
    assert sae.running("cuda").name == "dense"
    assert make(name, backend="dense").running("cpu").name == "dense"
    assert make(name, backend="sparse").running("cuda").name == "sparse"


def test_auto_never_fails() -> None:
    sae = ComposedSAE(D_IN, 9, Affine, Twice, L1)
    assert sae.running("cpu").name == "dense"
    with pytest.raises(ValueError, match="backend = sparse has no rule for Twice: take auto or dense"):
        ComposedSAE(D_IN, 9, Affine, Twice, L1, backend="sparse")


@pytest.mark.parametrize("name", PRESETS)
def test_gamma_may_be_set_later(name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(20, D_IN)
    found = []
    for gamma in (0.0, 0.3):
        sae = make(name, gamma=gamma)
        sae.initialize(x)
        sae.gamma = 0.3
        found.append(sae.learn(x).terms)
    assert found[0].keys() == found[1].keys() == {"loss", "mse", "regularizer"}
    assert torch.equal(found[0]["loss"], found[1]["loss"])
    sae.gamma = 0.0
    assert sae.learn(x).terms.keys() == {"loss", "mse"}


def test_unknown_backends_are_refused() -> None:
    with pytest.raises(ValueError, match="backend must be one of auto, dense, sparse, sharded, but is 'triton'"):
        ReLUSAE(D_IN, 9, backend="triton")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend = sharded needs latents on several processes"):
        ReLUSAE(D_IN, 9, backend="sharded").encode(torch.zeros(1, D_IN))
    with pytest.raises(ValueError, match="chunk_size must be None with backend = dense, but is 4"):
        ReLUSAE(D_IN, 9, backend="dense", chunk_size=4)


def test_a_backend_is_no_part_of_what_was_trained(tmp_path: Path) -> None:
    sae = make("relu", backend="dense")
    trainer = fit(sae, 2)
    trainer.save_checkpoint(tmp_path / "relu.ckpt")
    assert load_sae(tmp_path / "relu.ckpt").backend == "auto"


def test_a_term_of_ones_own_is_trained() -> None:
    saes = []
    for kind in (ReLUSAE, Orthogonal):
        torch.manual_seed(1)
        sae = kind(D_IN, 16, optimizer=partial(Adam, lr=1e-2))
        fit(sae, 100)
        saes.append(sae)
    plain, orthogonal = saes
    assert orthogonal.running("cpu").name == "dense"
    least = (16**2 / D_IN - 16) / 2 / 16**2  # no 16 unit vectors in so few dimensions overlap less (Welch, 1974)
    assert overlap(orthogonal) < 1.001 * least < 1.1 * least < overlap(plain)
    x = torch.randn(20, D_IN)
    terms = orthogonal.learn(x).terms
    assert terms.keys() == {"loss", "mse", "regularizer", "overlap"}
    expected = terms["mse"] + orthogonal.gamma * terms["regularizer"] + 100 * terms["overlap"]
    torch.testing.assert_close(terms["loss"], expected)
    assert terms["overlap"].item() == pytest.approx(overlap(orthogonal), rel=1e-4)
    with pytest.raises(ValueError, match="backend = sparse has no rule for loss_terms: take auto or dense"):
        Orthogonal(D_IN, 16, backend="sparse")


def test_results_and_log_name_the_backend(tmp_path: Path) -> None:
    config = CONFIGS / "separability" / "compare.yaml"
    sizes = [
        "--data.n_per_concept",
        100,
        "--data.n_val_per_concept",
        5,
        "--data.n_test_per_concept",
        5,
        "--data.batch_size",
        64,
    ]
    done = run_process("fit", "-c", config, *sizes, "--trainer.max_steps", 2, *QUIET, "--run_dir", tmp_path / "run")

    results = json.loads((tmp_path / "run" / "results.json").read_text())
    names = set(results["fit"]["backend"])
    assert names == {"spade", "topk", "relu", "jumprelu"}
    assert set(results["fit"]["backend"].values()) == {"sparse"}
    assert re.search(r"Backend: sparse \(4\)", done.stdout + done.stderr)
