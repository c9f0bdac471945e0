"""A latent fires where |code| > 1e-6, in every precision."""

import ast
from pathlib import Path

import pytest
import torch

import sae_lightning
from sae_lightning.nn import fires

PACKAGE = Path(sae_lightning.__file__).parent


def test_signs_do_not_matter():
    codes = torch.tensor([[1.0, -1.0, 1.1e-6, -1.1e-6], [1e-6, -1e-6, 0.0, -0.0]], dtype=torch.float64)
    assert fires(codes).tolist() == [[True] * 4, [False] * 4]
    assert torch.equal(fires(-codes), fires(codes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_does_not_round_the_threshold(dtype):
    codes = torch.tensor([2e-6, -2e-6, 0.5, -0.5, 0.0]).to(dtype)
    assert fires(codes).tolist() == [abs(value) > 1e-6 for value in codes.double().tolist()]


def test_a_threshold_that_half_precision_would_round_is_compared_as_it_is():
    codes = torch.tensor([1.0, 1.0009765625, -1.0009765625], dtype=torch.float16)
    assert fires(codes, 1.0005).tolist() == [False, True, True]


def test_undefined_codes_do_not_fire():
    assert fires(torch.tensor([torch.nan, torch.inf, -torch.inf])).tolist() == [False, True, True]


def test_nothing_else_compares_with_the_threshold():
    """The threshold is named where firing is defined and where it is drawn, and nowhere else."""
    naming = set()
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        names = [n.id for n in ast.walk(tree) if isinstance(n, ast.Name)]
        if "FIRING_THRESHOLD" in names:
            naming.add(path.relative_to(PACKAGE).as_posix())
    assert naming == {"nn/firing.py", "plotting/fields.py"}
