"""Weights in raw units compute what the SAE computes, by plain formulas that know nothing of standardisation."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from sae_lightning import ComposedSAE, JumpReLUSAE, ReLUSAE, SpaDE, TopKSAE, load_sae
from sae_lightning.nn import Affine, KSparse, Orthant, Simplex, SquaredDistance
from tests.helpers.data import D_IN, Clusters
from tests.helpers.modules import PRESETS, make
from tests.helpers.runs import ROOT
from tests.helpers.trainers import fit


def by_relu(v, sae):
    return v.relu()


def by_jump(v, sae):
    return torch.where(v > sae.threshold, v, 0)


def by_top_k(v, sae):
    k = sae.sae.projection.k
    kept = torch.zeros_like(v, dtype=torch.bool).scatter(-1, v.topk(k, dim=-1).indices, True)
    return torch.where(kept, v.relu(), 0)


def by_sparsemax(v, sae):
    """By bisection of the threshold."""
    low, high = v.amax(-1, keepdim=True) - 1, v.amax(-1, keepdim=True)
    for _ in range(80):
        middle = (low + high) / 2
        above = (v - middle).relu().sum(-1, keepdim=True) > 1
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return (v - low).relu()


PLAIN = {
    "relu": by_relu,
    "jumprelu": by_jump,
    "topk": by_top_k,
    "spade": by_sparsemax,
    "composed": by_top_k,
    "composed-distance": by_sparsemax,
}


@pytest.fixture(scope="module")
def trained():
    found = {}
    for name in PRESETS:
        found[name] = make(name)
        fit(found[name], 20)
        found[name] = found[name].eval().requires_grad_(False).double()
    return found


@pytest.mark.parametrize("name", PLAIN)
def test_they_compute_codes_and_reconstructions(name, trained):
    sae = trained[name]
    x = Clusters().split("test").activations.double()
    pre_codes = x @ sae.W_enc + sae.b_enc
    codes = PLAIN[name](pre_codes, sae)
    assert sae.W_enc.shape == (D_IN, sae.d_sae)
    assert sae.W_dec.shape == (sae.d_sae, D_IN)
    torch.testing.assert_close(codes, sae.encode(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(codes @ sae.W_dec + sae.b_dec, sae(x).x_hat, rtol=1e-9, atol=1e-9)
    assert (codes > 1e-6).any()
    # the weights that are trained are other numbers
    assert not torch.allclose(sae.W_dec, sae.sae.decoder.weight, rtol=1e-2)


@pytest.mark.parametrize(
    "changes",
    [
        {"decoder_bias": False, "subtract_decoder_bias": False},
        {"standardize": False},
        {"encoder_bias": False},
        {"pre_code_scale": 1 / 12},
        {"normalize_decoder": False},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_every_option_is_folded(changes):
    sae = make("relu", **changes)
    fit(sae, 5)
    sae = sae.eval().requires_grad_(False).double()
    x = Clusters().split("test").activations.double()
    codes = (x @ sae.W_enc + sae.b_enc).relu()
    torch.testing.assert_close(codes, sae.encode(x), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(codes @ sae.W_dec + sae.b_dec, sae(x).x_hat, rtol=1e-9, atol=1e-9)


def test_offsets_of_prototypes_are_folded():
    torch.manual_seed(0)
    sae = ComposedSAE(D_IN, 9, partial(SquaredDistance, offset_init=0.5), Simplex, init="data", decoder_bias=True)
    sae.initialize(Clusters().split("train").activations)
    torch.nn.init.normal_(sae.sae.encoder.offset)
    sae.double().requires_grad_(False)
    x = Clusters().split("test").activations.double()
    torch.testing.assert_close(by_sparsemax(x @ sae.W_enc + sae.b_enc, sae), sae.encode(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("projection", [Orthant, partial(KSparse, k=3)])
def test_distances_have_no_matrix_where_what_they_share_matters(projection):
    sae = ComposedSAE(D_IN, 9, partial(SquaredDistance, offset_init=0.5), projection)
    for name in ("W_enc", "b_enc"):
        with pytest.raises(
            ValueError, match=f"{name} needs pre-codes that are affine in the inputs, but SquaredDistance"
        ):
            getattr(sae, name)
    assert sae.W_dec.shape == (9, D_IN)


def test_a_changed_encoder_does_not_answer_for_its_parent():
    class Squared(Affine):
        def forward(self, x, center=None):
            return super().forward(x).square()

    with pytest.raises(ValueError, match="W_enc needs pre-codes that are affine"):
        ComposedSAE(D_IN, 9, Squared, Orthant).W_enc  # noqa: B018


def test_thresholds_are_those_of_the_pre_codes():
    assert JumpReLUSAE(D_IN, 5, threshold_init=0.25).threshold.tolist() == pytest.approx([0.25] * 5)
    assert not JumpReLUSAE(D_IN, 5).threshold.requires_grad
    for cls in (ReLUSAE, SpaDE, partial(TopKSAE, k=2)):
        assert cls(D_IN, 5).threshold is None


@pytest.mark.parametrize("name", PLAIN)
def test_a_file_holds_them_for_other_programs(name, trained, tmp_path):
    sae = trained[name]
    path = tmp_path / "weights.safetensors"
    sae.save_safetensors(path)
    found = load_file(path)
    assert found.keys() == {"W_enc", "b_enc", "W_dec", "b_dec"} | ({"threshold"} if name == "jumprelu" else set())
    for key, value in found.items():
        assert torch.equal(value, getattr(sae, key)), key
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["sae_lightning"]) == json.loads(json.dumps(sae.describe()))
    sae.save_safetensors(str(path))  # replaces it
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_readme_steers_a_model_with_a_latent(tmp_path, monkeypatch):
    """The lines in the README, on a small GPT-2: its activations move by the atom, exactly."""
    transformers = pytest.importorskip("transformers")
    (code,) = [
        c for c in re.findall(r"```python\n(.*?)```", Path(ROOT, "README.md").read_text(), re.DOTALL) if "hook" in c
    ]
    assert len(code.strip().splitlines()) <= 7
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=D_IN, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    inputs = {"input_ids": torch.tensor([[1, 2, 3]])}
    seen = []
    model.get_submodule("transformer.ln_f").register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    sae = make("topk")
    fit(sae, 5).save_checkpoint(tmp_path / "runs/mine/checkpoints/last.ckpt")
    monkeypatch.chdir(tmp_path)
    names = {"model": model, "inputs": inputs}
    with torch.no_grad():
        plain = model(**inputs).logits
        exec(code, names)
        names["handle"].remove()
        assert torch.equal(model(**inputs).logits, plain)
    direction = load_sae("runs/mine/checkpoints/last.ckpt").W_dec[17]
    torch.testing.assert_close(seen[1] - seen[0], (4 * direction).expand_as(seen[0]), rtol=1e-4, atol=1e-4)
    assert not torch.equal(names["steered"].logits, plain)
