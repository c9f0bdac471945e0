"""Small SAEs of all architectures and options, held to the formulas that `reference` writes out."""

from dataclasses import dataclass, fields
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sae_lightning.nn import (
    L0,
    L1,
    Affine,
    AuxK,
    Decoder,
    DistanceWeightedL1,
    Jump,
    KSparse,
    Orthant,
    Regularizer,
    Simplex,
    SparseAutoencoder,
    SquaredDistance,
)
from tests.helpers import reference
from tests.helpers.tensors import numpy, randn

ARCHITECTURES = ("relu", "jumprelu", "topk", "spade", "ball")  # the last one: distances with offsets, orthant
D_IN, D_SAE, K, GAMMA, BANDWIDTH = 5, 9, 3, 0.37, 0.8


@dataclass(frozen=True)
class Options:
    """What the architectures can be built with."""

    architecture: str
    encoder_bias: bool = True
    decoder_bias: bool = True
    subtract_decoder_bias: bool = False
    unit_norm: bool = False
    pre_code_scale: float = 1.0
    standardize: bool = True

    def __str__(self) -> str:
        changed = [f.name for f in fields(self)[1:] if getattr(self, f.name) != f.default]
        return "-".join([self.architecture, *changed])


def all_options() -> list[Options]:
    """Every architecture with every valid combination of its options."""
    options = []
    for architecture in ARCHITECTURES:
        affine = architecture not in ("spade", "ball")
        for e, d, s, u, p, z in product([True, False], repeat=6):
            if (s and not d) or (not affine and not (e and p)):
                continue
            options.append(Options(architecture, e, d, s, u, 1.0 if p else 1 / (2 * D_IN), z))
    return options


def build(o: Options, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[SparseAutoencoder, Regularizer]:
    """An SAE and its regularizer with random values in all parameters (and in the standardizer, where it is on)."""
    encoder = (
        SquaredDistance(D_IN, D_SAE, offset_init=0.0 if o.architecture == "ball" else None)
        if o.architecture in ("spade", "ball")
        else Affine(D_IN, D_SAE, bias=o.encoder_bias, pre_code_scale=o.pre_code_scale)
    )
    projection, regularizer = {
        "relu": lambda: (Orthant(D_SAE), L1(D_SAE)),
        "jumprelu": lambda: (
            Jump(D_SAE, threshold_init=0.3 * o.pre_code_scale, bandwidth=BANDWIDTH * o.pre_code_scale),
            L0(D_SAE),
        ),
        "topk": lambda: (KSparse(D_SAE, K), AuxK(D_SAE, k_aux=2, dead_after=4)),
        "spade": lambda: (Simplex(D_SAE), DistanceWeightedL1(D_SAE)),
        "ball": lambda: (Orthant(D_SAE), DistanceWeightedL1(D_SAE)),
    }[o.architecture]()
    decoder = Decoder(D_IN, D_SAE, bias=o.decoder_bias, unit_norm=o.unit_norm)
    sae = SparseAutoencoder(
        encoder, projection, decoder, standardize=o.standardize, subtract_decoder_bias=o.subtract_decoder_bias
    )
    with torch.no_grad():
        for i, (name, parameter) in enumerate(sorted(sae.named_parameters())):
            noise = randn(*parameter.shape, seed=1000 * seed + i, dtype=torch.float32)
            if name == "projection.log_threshold":
                parameter.add_(0.3 * noise)  # thresholds that differ, around threshold_init
            elif name == "encoder.raw_lambda":
                parameter.fill_(-1.0)
            elif name == "encoder.offset":
                parameter.copy_(2.0 + noise)  # about lambda times the squared distances: some latents fire
            else:
                parameter.copy_(0.6 * noise)
    if o.standardize:
        sae.standardizer.fit(raw_inputs(50, o, seed=seed + 77))
    return sae.to(dtype), regularizer


def raw_inputs(n: int, o: Options, seed: int = 1) -> Tensor:
    """Samples far from standardized where the SAE standardizes."""
    x = randn(n, D_IN, seed=seed)
    return 3.0 + 2.5 * x if o.standardize else x


def to_reference(sae: SparseAutoencoder, regularizer: Regularizer | None, gamma: float) -> reference.Model:
    """The same SAE as plain values."""
    p = {name: numpy(value) for name, value in sae.state_dict().items()}
    extra: dict[str, Any] = {}
    if isinstance(sae.encoder, Affine):
        extra |= {"b_enc": p.get("encoder.bias"), "pre_code_scale": sae.encoder.pre_code_scale}
    else:
        extra |= {"raw_lambda": p["encoder.raw_lambda"], "offset": p.get("encoder.offset")}
    if isinstance(sae.projection, Jump):
        extra |= {"log_threshold": p["projection.log_threshold"], "bandwidth": sae.projection.bandwidth}
    if isinstance(sae.projection, KSparse):
        extra |= {"k": sae.projection.k}
    if isinstance(regularizer, AuxK):
        silent = sae.batches_silent.numpy()
        extra |= {"k_aux": regularizer.k_aux, "dead": silent >= regularizer.dead_after}
    kinds = {L1: "l1", L0: "l0", DistanceWeightedL1: "distance", AuxK: "auxk", type(None): "none"}
    sets = {Orthant: "orthant", Jump: "jump", KSparse: "k_sparse", Simplex: "simplex"}
    return reference.Model(
        projection=sets[type(sae.projection)],
        regularizer=kinds[type(regularizer)],
        gamma=gamma,
        W_enc=p["encoder.weight"],
        W_dec=p["decoder.weight"],
        b_dec=p.get("decoder.bias"),
        subtract_decoder_bias=sae.subtract_decoder_bias,
        unit_norm=sae.decoder.unit_norm,
        input_mean=p["standardizer.input_mean"],
        input_scale=float(p["standardizer.input_scale"]),
        **extra,
    )


def training_loss(sae: SparseAutoencoder, regularizer: Regularizer | None, gamma: float, x_raw: Tensor) -> Tensor:
    """What training minimizes, in standardized units."""
    x = sae.standardize(x_raw)
    out = sae.autoencode(x)
    loss = (x - out.x_hat).square().sum(-1).mean()
    return loss if regularizer is None else loss + gamma * regularizer(sae, x, out).mean()


def assert_same_as_reference(
    sae: SparseAutoencoder, regularizer: Regularizer | None, x_raw: Tensor, gamma: float = GAMMA
) -> reference.Result:
    """Compare outputs, loss and all gradients with the written-out formulas, relative to the largest entry."""
    sae.zero_grad()
    loss = training_loss(sae, regularizer, gamma, x_raw)
    loss.backward()
    out = sae(x_raw)
    expected = reference.evaluate(to_reference(sae, regularizer, gamma), numpy(x_raw))

    def check(name: str, actual: Tensor | None, wanted: Any) -> None:
        assert actual is not None, f"{name} has no gradient"
        assert tuple(actual.shape) == np.shape(wanted), name
        error = np.abs(numpy(actual) - wanted).max()
        assert error <= 1e-10 * max(1.0, np.abs(wanted).max()), f"{name} is off by {error}"

    for name in ("x_hat", "codes", "pre_codes"):
        check(name, getattr(out, name), getattr(expected, name))
    check("loss", loss, expected.loss)
    gradients = {name: parameter.grad for name, parameter in sae.named_parameters()}
    assert gradients.keys() == expected.gradients.keys()
    for name, gradient in gradients.items():
        check(f"gradient of {name}", gradient, expected.gradients[name])
    return expected
