import numpy as np
import pytest
import torch

from sae_lightning.nn import Standardizer
from tests.helpers.tensors import LEADING_SHAPES, numpy, randn


def samples(n: int = 40, d_in: int = 5) -> torch.Tensor:
    return 7.0 + torch.arange(1, d_in + 1) * randn(n, d_in)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("n", [2, 40, 1000])
def test_fit_is_numpy_in_float64(n: int, dtype: torch.dtype) -> None:
    x = samples(n).to(dtype)
    standardizer = Standardizer(5).double()
    standardizer.fit(x)
    data = numpy(x)
    mean = data.mean(0)
    scale = np.sqrt(((data - mean) ** 2).sum(1).mean() / 5)
    np.testing.assert_allclose(numpy(standardizer.input_mean), mean, rtol=1e-13)
    np.testing.assert_allclose(numpy(standardizer.input_scale), scale, rtol=1e-13)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_standardised_samples_have_mean_zero_and_mean_squared_norm_d_in(scale: float) -> None:
    x = scale * samples()
    standardizer = Standardizer(5).double()
    standardizer.fit(x)
    y = standardizer(x)
    np.testing.assert_allclose(numpy(y.mean(0)), 0, atol=1e-12)
    assert y.square().sum(-1).mean().item() == pytest.approx(5, rel=1e-12)


def test_statistics_are_computed_in_float64_even_if_the_buffers_are_float32() -> None:
    # a spread of 1e-3 on an offset of 1e3: in float32 the squares would lose it
    x = 1e3 + 1e-3 * torch.arange(8, dtype=torch.float64)[:, None].expand(8, 3)
    standardizer = Standardizer(3)
    standardizer.fit(x)
    assert standardizer.input_scale.item() == pytest.approx(1e-3 * np.std(np.arange(8)), rel=1e-6)


@pytest.mark.parametrize("leading", LEADING_SHAPES, ids=str)
@pytest.mark.parametrize("enabled", [True, False])
def test_inverse_undoes_forward(enabled: bool, leading: tuple[int, ...]) -> None:
    standardizer = Standardizer(5, enabled).double()
    standardizer.fit(samples())
    x = randn(*leading, 5, seed=3)
    y = standardizer(x)
    torch.testing.assert_close(standardizer.inverse(y), x, rtol=1e-13, atol=1e-13)
    expected = (x - standardizer.input_mean) / standardizer.input_scale if enabled else x
    assert torch.equal(y, expected)


def test_switched_off_it_changes_nothing() -> None:
    standardizer = Standardizer(5, enabled=False)
    standardizer.fit(samples(1))  # not even an error
    assert standardizer.input_mean.tolist() == [0] * 5
    assert standardizer.input_scale.item() == 1
    x = samples().float()
    assert torch.equal(standardizer(x), x)
    assert torch.equal(standardizer.inverse(x), x)


def test_before_fitting_it_changes_nothing() -> None:
    x = samples().float()
    assert torch.equal(Standardizer(5)(x), x)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_inputs_become_float32(dtype: torch.dtype, enabled: bool) -> None:
    standardizer = Standardizer(5, enabled)
    standardizer.fit(samples())
    assert standardizer(samples().to(dtype)).dtype == torch.float32


def test_statistics_are_saved_and_not_trained() -> None:
    standardizer = Standardizer(5)
    standardizer.fit(samples())
    assert list(standardizer.state_dict()) == ["input_mean", "input_scale"]
    assert not list(standardizer.parameters())
    other = Standardizer(5)
    other.load_state_dict(standardizer.state_dict())
    assert torch.equal(other(samples()), standardizer(samples()))


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_samples(n: int) -> None:
    with pytest.raises(ValueError, match=f"at least two training samples, but got {n}"):
        Standardizer(5).fit(samples(n))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e8])
@pytest.mark.parametrize("n", [2, 3, 9, 1000])
def test_equal_samples(n: int, value: float, dtype: torch.dtype) -> None:
    standardizer = Standardizer(4).double()
    with pytest.raises(ValueError, match="training samples that differ, but all are equal"):
        standardizer.fit(torch.full((n, 4), value, dtype=dtype))
    assert standardizer.input_scale.item() == 1  # left as it was
