from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.optim import SGD, Adam

from sae_lightning.callbacks import ResampleDeadLatents
from sae_lightning.modules import BaseSAE, Comparison

from ..modules.helpers import D_IN, D_SAE, PRESETS, Clusters, make, make_trainer, stream

DEAD = [2, 7, 19]
ALIVE = [i for i in range(D_SAE) if i not in DEAD]
OUTLIER = 17
AFFINE = [name for name in PRESETS if name not in ("spade", "composed-distance", "composed-ball")]


def prepared(name: str, optimizer: Any, **changes: Any) -> tuple[BaseSAE, torch.optim.Optimizer, Tensor]:
    """An SAE after some steps, with dead latents, and a batch in which one sample has nearly all the error."""
    sae = make(name, **changes)
    x = stream(Clusters(), 256)
    sae.initialize(x)
    made = optimizer(sae.parameters())
    for batch in x.split(64):
        made.zero_grad()
        sae.learn(batch).terms["loss"].backward()
        made.step()
    sae.sae.batches_silent.fill_(3)
    sae.sae.batches_silent[DEAD] = torch.tensor([100, 101, 10**6])
    x = x[:64].clone()
    x[OUTLIER] += 1e4 * torch.randn(D_IN, generator=torch.Generator().manual_seed(0))
    return sae, made, x


def weights(sae: BaseSAE) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in sae.named_parameters()}


def moments(sae: BaseSAE, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name} {key}": value.clone()
        for name, p in sae.named_parameters()
        for key, value in optimizer.state[p].items()
        if isinstance(value, Tensor)
    }


def test_prototypes_and_atoms_move_to_badly_explained_samples() -> None:
    sae, optimizer, x = prepared("spade", Adam)
    sample = sae.sae.standardize(x)[OUTLIER]
    assert ResampleDeadLatents().resample(sae, x, 7, optimizer) == 3
    assert torch.equal(sae.sae.encoder.weight[DEAD], sample.expand(3, -1))
    assert torch.equal(sae.sae.decoder.weight[DEAD], sample.expand(3, -1))
    assert bool((sae.encode(x)[OUTLIER, DEAD] > 0).all())  # and they fire there


@pytest.mark.parametrize("encoder_norm", [0.2, 1.5])
@pytest.mark.parametrize("name", AFFINE)
def test_affine_latents_point_along_the_residual(name: str, encoder_norm: float) -> None:
    sae, optimizer, x = prepared(name, Adam)
    core = sae.sae
    residual = core.standardize(x) - core.autoencode(core.standardize(x)).x_hat
    direction = (residual / residual.norm(dim=1, keepdim=True))[OUTLIER]
    norm = encoder_norm * core.encoder.weight[ALIVE].norm(dim=1).mean()
    ResampleDeadLatents(encoder_norm=encoder_norm).resample(sae, x, 7, optimizer)
    torch.testing.assert_close(core.decoder.weight[DEAD], direction.expand(3, -1))
    torch.testing.assert_close(core.encoder.weight[DEAD], (norm * direction).expand(3, -1))


@pytest.mark.parametrize(
    "optimizer", [Adam, lambda p: Adam(p, amsgrad=True), lambda p: SGD(p, 1e-3, momentum=0.9), SGD]
)
@pytest.mark.parametrize("name", PRESETS)
def test_only_dead_latents_are_touched(name: str, optimizer: Any) -> None:
    sae, made, x = prepared(name, optimizer)
    if name in ("relu", "jumprelu"):
        with torch.no_grad():
            sae.sae.encoder.bias.fill_(0.5)
    before, before_moments = weights(sae), moments(sae, made)
    ResampleDeadLatents().resample(sae, x, 7, made)
    rows = {"sae.encoder.weight", "sae.decoder.weight", "sae.encoder.bias", "sae.encoder.offset"}

    for key, value in weights(sae).items():
        if key in rows:
            assert not torch.equal(value[DEAD], before[key][DEAD]), key
            assert torch.equal(value[ALIVE], before[key][ALIVE]), key
        else:
            assert torch.equal(value, before[key]), key
    assert name not in ("relu", "jumprelu") or bool((sae.sae.encoder.bias[DEAD] == 0).all())

    for key, value in moments(sae, made).items():
        parameter, kind = key.split()
        if parameter in rows and kind != "step":
            assert bool((value[DEAD] == 0).all()), key
            assert torch.equal(value[ALIVE], before_moments[key][ALIVE]), key
        else:
            assert torch.equal(value, before_moments[key]), key

    assert sae.sae.batches_silent[DEAD].tolist() == [0, 0, 0]
    assert bool((sae.sae.batches_silent[ALIVE] == 3).all())


def test_offsets_become_the_mean_of_the_live_ones() -> None:
    sae, optimizer, x = prepared("composed-ball", Adam)
    with torch.no_grad():
        sae.sae.encoder.offset.copy_(torch.linspace(0.1, 2.0, D_SAE))
    mean = sae.sae.encoder.offset[ALIVE].mean()
    ResampleDeadLatents().resample(sae, x, 7, optimizer)
    torch.testing.assert_close(sae.sae.encoder.offset[DEAD], mean.expand(3))
    sae.sae.batches_silent.fill_(100)
    with torch.no_grad():
        sae.sae.encoder.offset.fill_(-3.0)
    ResampleDeadLatents().resample(sae, x, 8, optimizer)  # with none alive: the initial offset
    assert bool((sae.sae.encoder.offset == 0.125).all())


def test_samples_are_drawn_by_their_error() -> None:
    sae, optimizer, x = prepared("spade", Adam, d_sae=3000)
    x = x[:4].clone()
    core = sae.sae
    core.batches_silent.fill_(0)
    core.batches_silent[10:] = 1000
    standardized = core.standardize(x)
    error = (standardized - core.autoencode(standardized).x_hat).square().sum(1)
    ResampleDeadLatents().resample(sae, x, 7, optimizer)
    shares = (core.encoder.weight[10:, None] == standardized).all(-1).double().mean(0)
    torch.testing.assert_close(shares, (error / error.sum()).double().detach(), rtol=0, atol=0.03)
    assert shares.sum() == 1


def test_rounds_are_reproducible_and_differ_by_step() -> None:
    drawn, x = [], stream(Clusters(), 256)
    for step, used in [(500, 0), (500, 100), (1000, 0)]:
        sae, optimizer, _ = prepared("spade", Adam, d_sae=50)
        sae.sae.batches_silent.fill_(1000)
        torch.randn(used)
        state = torch.get_rng_state()
        ResampleDeadLatents().resample(sae, x, step, optimizer)
        assert torch.equal(state, torch.get_rng_state())
        drawn.append(sae.sae.encoder.weight.detach().clone())
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64 - 1])
def test_any_seed_of_the_program(seed: int) -> None:
    sae, optimizer, x = prepared("spade", Adam)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        assert ResampleDeadLatents().resample(sae, x, 500, optimizer) == 3


@pytest.mark.parametrize("name", ["spade", "relu"])
def test_nothing_is_dead(name: str) -> None:
    sae, optimizer, x = prepared(name, Adam)
    sae.sae.batches_silent.fill_(99)
    before, before_moments = weights(sae), moments(sae, optimizer)
    assert ResampleDeadLatents().resample(sae, x, 7, optimizer) == 0
    assert all(torch.equal(value, before[key]) for key, value in weights(sae).items())
    assert all(torch.equal(value, before_moments[key]) for key, value in moments(sae, optimizer).items())


@pytest.mark.parametrize("name", PRESETS)
def test_everything_is_dead(name: str) -> None:
    sae, optimizer, x = prepared(name, Adam)
    sae.sae.batches_silent.fill_(100)
    assert ResampleDeadLatents().resample(sae, x, 7, optimizer) == D_SAE
    assert all(bool(value.isfinite().all()) for value in weights(sae).values())


def test_a_perfect_reconstruction() -> None:
    sae, optimizer, x = prepared("spade", Adam)
    with torch.no_grad():
        sae.sae.encoder.weight[:] = sae.sae.decoder.weight[:] = sae.sae.standardize(x)[0]
    ResampleDeadLatents().resample(sae, x[:1].expand(5, -1), 7, optimizer)
    assert all(bool(value.isfinite().all()) for value in weights(sae).values())


# -- in a Trainer ---------------------------------------------------------------------------------------------------


def with_dead_latent(name: str) -> BaseSAE:
    """An initialised SAE whose latent 3 can never fire."""
    sae = make(name)
    sae.initialize(stream(Clusters(), 300))
    with torch.no_grad():
        if name == "spade":
            sae.sae.encoder.weight[3] = 1e3
        else:
            sae.sae.encoder.bias[3] = -1e6
    return sae


def standardized(sae: BaseSAE, batch: int) -> Tensor:
    return sae.sae.standardize(stream(Clusters(), 10**6).split(32)[batch])


class Log(DummyLogger):
    """Remembers what is logged at which step."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:  # type: ignore[override]
        self.rows.append((step, metrics))


@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "comparison"])
def test_rounds_in_training(grouped: bool) -> None:
    saes = {"spade": with_dead_latent("spade"), "relu": with_dead_latent("relu")}
    module: Any = Comparison(D_IN, {n: lambda d_in, n=n: saes[n] for n in saes}) if grouped else saes["spade"]
    names = list(saes) if grouped else ["spade"]
    frozen = {name: saes[name].sae.encoder.weight[3].clone() for name in names}

    trainer = make_trainer(4, callbacks=[ResampleDeadLatents(every_n_steps=5, dead_after=5)])
    trainer.fit(module, datamodule=Clusters())
    for name in names:  # no round yet
        assert torch.equal(saes[name].sae.encoder.weight[3], frozen[name])
        assert saes[name].sae.batches_silent[3] == 4

    saes = {"spade": with_dead_latent("spade"), "relu": with_dead_latent("relu")}
    module = Comparison(D_IN, {n: lambda d_in, n=n: saes[n] for n in saes}) if grouped else saes["spade"]
    trainer = make_trainer(5, callbacks=[ResampleDeadLatents(every_n_steps=5, dead_after=5)])
    log = Log()
    trainer.loggers = [log]
    trainer.fit(module, datamodule=Clusters())
    ((step, logged),) = [(step, row) for step, row in log.rows if any("resampled" in key for key in row)]
    assert step == 4  # as what the step itself logs
    for name in names:
        core = saes[name].sae
        assert core.batches_silent[3] == 0
        key = f"{name}/train/resampled_latents" if grouped else "train/resampled_latents"
        assert logged[key] >= 1
        optimizer: Any = trainer.optimizers[0]
        own = optimizer.optimizers[name] if grouped else optimizer
        for parameter in (core.encoder.weight, core.decoder.weight):
            for value in own.state[parameter].values():
                if value.shape == parameter.shape:
                    assert bool((value[3] == 0).all())
                    assert bool((value != 0).any())
    assert bool((saes["spade"].sae.encoder.weight[3] == standardized(saes["spade"], 4)).all(-1).any())
    if grouped:
        assert saes["relu"].sae.encoder.bias[3] == 0
        assert saes["relu"].sae.decoder.weight[3].norm().item() == pytest.approx(1, abs=1e-5)


class Counting(ResampleDeadLatents):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps: list[int] = []

    def resample(self, sae: BaseSAE, x: Tensor, step: int, optimizer: torch.optim.Optimizer) -> int:
        self.steps.append(step)
        return super().resample(sae, x, step, optimizer)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("until", "steps"), [(None, [4, 8, 12]), (8, [4, 8]), (7, [4]), (0, [])])
def test_when_rounds_are_held(until: int | None, steps: list[int], accumulate: int) -> None:
    callback = Counting(every_n_steps=4, dead_after=2, until_step=until)
    trainer = make_trainer(13, callbacks=[callback], accumulate_grad_batches=accumulate)
    trainer.fit(make("relu"), datamodule=Clusters(60))
    assert callback.steps == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every_n_steps": 0}, "every_n_steps must be at least 1, but is 0"),
        ({"dead_after": 0}, "dead_after must be at least 1, but is 0"),
        ({"encoder_norm": 0.0}, r"encoder_norm must be positive, but is 0\.0"),
        ({"encoder_norm": -1}, "encoder_norm must be positive, but is -1"),
        ({"encoder_norm": float("nan")}, "encoder_norm must be positive, but is nan"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ResampleDeadLatents(**options)
