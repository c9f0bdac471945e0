import ctypes
import sys
from types import SimpleNamespace

import pytest
import torch

from sae_lightning.modules.allocator import keep_freed_memory


def test_keep_freed_memory_does_no_harm() -> None:
    for _ in range(2):
        assert isinstance(keep_freed_memory(), bool)
    for n in (1, 10**6, 2 * 10**7):
        x = torch.arange(n, dtype=torch.float64)
        assert x.sum().item() == n * (n - 1) / 2
        del x


def test_nothing_happens_on_other_systems(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("no library is asked"))
    assert keep_freed_memory() is False


@pytest.mark.parametrize("answers", [{}, {-3: 0}, {-1: 0}], ids=["no mallopt", "first refused", "second refused"])
def test_a_refusal_is_told(answers: dict[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    library = SimpleNamespace()
    if answers:
        library.mallopt = lambda parameter, value: answers.get(parameter, 1)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    assert keep_freed_memory() is False
