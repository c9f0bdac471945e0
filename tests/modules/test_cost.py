from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.helpers.modules import PRESETS, make
from tests.helpers.tensors import LargestTensor

BATCH, D_IN, D_SAE = 64, 24, 96


def step(sae: Any, x: torch.Tensor) -> LargestTensor:
    with LargestTensor() as largest:
        sae.learn(x).terms["loss"].backward()
    return largest


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "with dead latents"])
@pytest.mark.parametrize("name", PRESETS)
def test_nothing_is_larger_than_codes_or_weights(name: str, dead: bool) -> None:
    sae = make(name, d_in=D_IN, d_sae=D_SAE, l0_init=8) if "spade" in name else make(name, d_in=D_IN, d_sae=D_SAE)
    x = 3 + 2 * torch.randn(BATCH, D_IN)
    sae.initialize(x)
    if dead:
        sae.sae.batches_silent.fill_(1000)
    largest = step(sae, x)
    assert any("mm" in operation for operation in largest.operations)
    assert all(p.grad is not None for p in sae.parameters())  # the backward pass was seen, too
    assert BATCH * D_SAE <= largest.numel <= max(BATCH * D_SAE, D_SAE * D_IN, BATCH * D_IN)


@pytest.mark.parametrize("dead", [False, True], ids=["alive", "with dead latents"])
@pytest.mark.parametrize("chunk_size", [None, 8])
@pytest.mark.parametrize("name", PRESETS)
def test_a_sparse_step_holds_one_chunk_of_pre_codes(name: str, chunk_size: int | None, dead: bool) -> None:
    # wide enough that codes are few, so that what belongs to them is smaller than a dense chunk
    batch, d_in, d_sae = 64, 4, 2048
    options = {"l0_init": 8} if "spade" in name or "distance" in name else {}
    sae = make(name, d_in=d_in, d_sae=d_sae, chunk_size=chunk_size or batch, **options)
    x = 3 + 2 * torch.randn(batch, d_in)
    sae.initialize(x)
    if name in ("relu", "jumprelu"):
        with torch.no_grad():
            sae.sae.encoder.bias.copy_(-0.95 * sae.sae.pre_codes(sae.sae.standardize(x)).amax(0))
    if dead:
        sae.sae.batches_silent[::2] = 1000
    largest = step(sae, x)
    chunk, whole = (chunk_size or batch) * d_sae, batch * d_sae
    assert chunk <= largest.numel <= max(chunk, d_sae * d_in)
    assert all(p.grad is not None for p in sae.parameters())
    # at no time does it hold what a dense step cannot do without: pre-codes, codes and a gradient of the whole batch
    assert peak_memory(lambda: step(sae, x)) < 4 * (whole if chunk_size else 3 * whole)


def peak_memory(call: Callable[[], object]) -> int:
    """By how many bytes of tensors the memory grows during a call, at most."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    assert profiler.profiler is not None
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]).cumsum(0)
    return int(held.max())


def test_the_peak_is_seen() -> None:
    def call() -> None:
        x = torch.zeros(1000)
        del x
        (torch.zeros(3000) + torch.ones(3000)).sum()

    assert 36_000 <= peak_memory(call) < 40_000


def test_the_check_sees_large_tensors_forward_and_backward() -> None:
    x, w = torch.randn(BATCH, D_IN), torch.randn(D_SAE, D_IN, requires_grad=True)
    with LargestTensor() as largest:
        loss = (x[:, None] - w).square().sum()
    assert largest.numel == BATCH * D_SAE * D_IN
    with LargestTensor() as largest:
        loss.backward()
    assert largest.numel == BATCH * D_SAE * D_IN
