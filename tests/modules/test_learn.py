"""A training step takes sparse or dense codes, and the weights do not tell which."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam

from sae_lightning.backends.sparse import SparseCodes, SparseOutput
from sae_lightning.modules import BaseSAE, ComposedSAE, JumpReLUSAE, ReLUSAE, SpaDE, TopKSAE
from sae_lightning.nn import L1, Affine, KSparse, Orthant, Regularizer
from tests.helpers.data import BATCH, D_IN, Clusters, stream
from tests.helpers.modules import PRESETS, make
from tests.helpers.trainers import fit

pytestmark = pytest.mark.usefixtures("any_work")

D_SAE = 64
EVERY_PRESET = pytest.mark.parametrize("name", PRESETS)
DENSE, SPARSE = {"dense_above": 1}, {"dense_above": D_SAE}


def trained(name: str, steps: int, optimizer: Callable[..., Any], **options: Any) -> BaseSAE:
    """A preset after some steps, all of which went the way that `dense_above` or `chunk_size` asks for."""
    precision = options.pop("precision", "32-true")
    # from seed 3 on, no support is decided by a rounding: see below
    sae = make(name, seed=3, d_sae=D_SAE, optimizer=optimizer, lr_scheduler=None, **options)
    ways: list[bool] = []
    learn = sae.learn

    def watched(*batch: Tensor | None) -> Any:
        result = learn(*batch)
        ways.append(isinstance(result.out.codes, SparseCodes))
        return result

    sae.learn = watched  # type: ignore[method-assign]
    fit(sae, steps, gradient_clip_val=0.5, precision=precision)
    assert ways == [options != DENSE] * steps
    return sae


def largest_difference(a: BaseSAE, b: BaseSAE) -> float:
    ours, theirs = a.state_dict(), b.state_dict()
    assert torch.equal(ours["sae.batches_silent"], theirs["sae.batches_silent"])
    return max((ours[key].double() - theirs[key].double()).abs().max().item() for key in ours)


# -- both ways lead to the same weights -----------------------------------------------------------------------------


@EVERY_PRESET
def test_200_steps_give_the_same_weights(name: str) -> None:
    # Rounding must not be amplified, else two dense runs that start one ulp apart differ as much. Two things would:
    # Adam's usual eps of 1e-8, for it divides gradients of 1e-10 that are nothing but rounding by themselves (at the
    # first step, where a sample is its own prototype); and a code of 1e-7 that is in the support of one run only
    # (a measure-zero tie, which about one SpaDE run in six meets in float32).
    optimizer = partial(Adam, lr=3e-3, eps=1e-3)
    dense = trained(name, 200, optimizer, **DENSE)
    assert largest_difference(trained(name, 200, optimizer, **SPARSE), dense) < 1e-5
    start = make(name, seed=3, d_sae=D_SAE)
    assert (dense.sae.decoder.weight - start.sae.decoder.weight).abs().max() > 0.1  # it did train


@EVERY_PRESET
@pytest.mark.parametrize("way", [SPARSE, {"chunk_size": 7}, {"chunk_size": 1000}], ids=str)
def test_60_steps_in_float64_with_the_usual_adam(name: str, way: dict[str, int]) -> None:
    optimizer = partial(Adam, lr=3e-3)
    runs = [trained(name, 60, optimizer, precision="64-true", **options) for options in (way, DENSE)]
    assert largest_difference(*runs) < 1e-9


@EVERY_PRESET
def test_the_way_is_resumed(name: str, tmp_path: Path) -> None:
    # the density is measured on the batch, not remembered: a run that is resumed goes the same ways
    def half_way(sae: BaseSAE) -> list[bool]:
        ways: list[bool] = []
        running = sae.running("cpu")
        go = running.forward_train

        def watched(x: Tensor) -> Any:
            out = go(x)
            ways.append(isinstance(out, SparseOutput))
            return out

        running.forward_train = watched  # type: ignore[method-assign]
        return ways

    options = {"d_sae": D_SAE, "dense_above": 12, "optimizer": partial(SGD, lr=1e-2), "lr_scheduler": None}
    whole, first, second = (make(name, seed=3, **options) for _ in range(3))
    ways = half_way(whole)
    fit(whole, 50)
    part = half_way(first)
    fit(first, 25).save_checkpoint(tmp_path / "half.ckpt")
    part += half_way(second)
    rest = half_way(second)
    fit(second, 50, ckpt_path=tmp_path / "half.ckpt")
    assert part + rest == ways
    assert largest_difference(second, whole) == 0


# -- which way ------------------------------------------------------------------------------------------------------


class OwnRegularizer(Regularizer):
    """Somebody's regularizer, which knows nothing of sparse codes."""

    def forward(self, sae: Any, x: Tensor, out: Any) -> Tensor:
        return out.codes.square().sum(-1)


class ChangedL1(L1):
    """Somebody's change of a regularizer that has a sparse form, which the change has not."""

    def forward(self, sae: Any, x: Tensor, out: Any) -> Tensor:
        return out.codes.sqrt().sum(-1)


def is_sparse(sae: BaseSAE, x: Tensor) -> bool:
    return isinstance(sae.learn(x).out.codes, SparseCodes)


@pytest.mark.parametrize("regularizer", [OwnRegularizer, ChangedL1])
def test_a_regularizer_without_a_sparse_form_is_dense(regularizer: type[Regularizer]) -> None:
    x = torch.randn(BATCH, D_IN)
    sae = ComposedSAE(D_IN, D_SAE, Affine, partial(KSparse, k=2), regularizer)
    assert not is_sparse(sae, x)
    assert sae.learn(x).terms["regularizer"] > 0
    assert is_sparse(ComposedSAE(D_IN, D_SAE, Affine, partial(KSparse, k=2), L1), x)


def test_a_regularizer_that_is_switched_off_is_not_asked() -> None:
    sae = ComposedSAE(D_IN, D_SAE, Affine, partial(KSparse, k=2), OwnRegularizer, gamma=0.0)
    assert is_sparse(sae, torch.randn(BATCH, D_IN))


@EVERY_PRESET
def test_evaluation_is_dense(name: str) -> None:
    sae = make(name, chunk_size=4)
    sae.initialize(stream(Clusters(), 200))
    assert is_sparse(sae, stream(Clusters(), BATCH))
    assert isinstance(sae.evaluate(stream(Clusters(), BATCH)).out.codes, Tensor)


@EVERY_PRESET
def test_l0_and_silence_are_those_of_dense_codes(name: str) -> None:
    x = stream(Clusters(), BATCH)
    results = []
    for options in (DENSE, SPARSE):
        sae = make(name, d_sae=D_SAE, **options)
        sae.initialize(stream(Clusters(), 200))
        results.append((sae.learn(x), sae.sae.batches_silent))
    (dense, dense_silence), (sparse, sparse_silence) = results
    assert isinstance(sparse.out.codes, SparseCodes)
    assert torch.equal(sparse.l0(), dense.l0())
    assert torch.equal(sparse_silence, dense_silence)
    assert sparse.terms.keys() == dense.terms.keys()
    for key, value in dense.terms.items():
        torch.testing.assert_close(sparse.terms[key], value, rtol=1e-5, atol=1e-5)


# -- arguments ------------------------------------------------------------------------------------------------------


@EVERY_PRESET
@pytest.mark.parametrize("argument", ["chunk_size", "dense_above"])
@pytest.mark.parametrize("value", [0, -3])
def test_bad_arguments(name: str, argument: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, but is {value}"):
        make(name, **{argument: value})


@pytest.mark.parametrize("regularizer", [OwnRegularizer, ChangedL1])
def test_chunks_need_a_sparse_regularizer(regularizer: type[Regularizer]) -> None:
    message = f"chunk_size must be None where the sparse backend has no rule, as for {regularizer.__name__}"
    with pytest.raises(ValueError, match=message):
        ComposedSAE(D_IN, D_SAE, Affine, Orthant, regularizer, chunk_size=8)


@EVERY_PRESET
def test_arguments_are_described(name: str) -> None:
    described = make(name, chunk_size=8, dense_above=3).describe()["init_args"]
    assert (described["chunk_size"], described["dense_above"]) == (8, 3)
    described = make(name).describe()["init_args"]
    assert described["chunk_size"] is described["dense_above"] is None


# -- memory ---------------------------------------------------------------------------------------------------------

WIDE, MANY, CHUNK = 131_072, 256, 16


def wide(name: str) -> BaseSAE:
    """An SAE with many latents, few of which fire for a sample."""
    make_sae: dict[str, Callable[[], BaseSAE]] = {
        "relu": lambda: ReLUSAE(4, WIDE, chunk_size=CHUNK, standardize=False),
        "jumprelu": lambda: JumpReLUSAE(4, WIDE, chunk_size=CHUNK, standardize=False),
        "topk": lambda: TopKSAE(4, WIDE, k=32, chunk_size=CHUNK, standardize=False),
        "spade": lambda: SpaDE(4, WIDE, lambda_init=300.0, init="unit", chunk_size=CHUNK, standardize=False),
    }
    sae = make_sae[name]()
    if name in ("relu", "jumprelu"):
        with torch.no_grad():
            sae.sae.encoder.bias.fill_(-0.99)
    return sae


def measure() -> None:
    """Print by how many bytes each architecture's training steps raise the peak of this process."""
    import resource

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    found = {}
    for name in ("relu", "jumprelu", "topk", "spade"):
        sae = wide(name)
        x = torch.nn.functional.normalize(torch.randn(MANY, 4), dim=1)
        sae.learn(x[:2]).terms["loss"].backward()
        before = peak()
        for dead in (0, 10**6):  # with many dead latents, too
            sae.sae.batches_silent[WIDE // 2 :] = dead
            result = sae.learn(x)
            result.terms["loss"].backward()
        assert 1 <= result.l0() < 0.02 * WIDE, f"{name}: {result.l0()}"
        found[name] = peak() - before
    print(json.dumps(found))


@pytest.mark.slow
def test_chunks_bound_the_memory() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", "from tests.modules.test_learn import measure; measure()"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    dense = MANY * WIDE * 4  # one array of dense pre-codes
    assert max(found.values()) < dense / 2, found
