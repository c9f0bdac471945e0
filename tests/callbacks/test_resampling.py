import copy
import math
from functools import partial
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor
from torch.optim import SGD, Adam

from sae_lightning.callbacks import ResampleDeadLatents
from sae_lightning.modules import BaseSAE, Comparison, ComposedSAE, JumpReLUSAE, ReLUSAE, SpaDE, TopKSAE
from sae_lightning.nn import L1, Affine, Jump, KSparse, Orthant, Projection, Simplex, SquaredDistance
from sae_lightning.nn.firing import fires
from tests.helpers.data import D_IN, Clusters, stream
from tests.helpers.modules import D_SAE, PRESETS, AbsTopK, make
from tests.helpers.trainers import make_trainer

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


@pytest.mark.parametrize(
    ("name", "centred"),
    [("spade", False), *((name, c) for name in ("composed-distance", "composed-ball") for c in (False, True))],
)
def test_prototypes_move_to_badly_explained_samples_as_the_encoder_sees_them(name: str, centred: bool) -> None:
    sae, optimizer, x = prepared(name, Adam, **({"subtract_decoder_bias": True} if centred else {}))
    core = sae.sae
    if core.decoder.bias is not None:
        with torch.no_grad():
            core.decoder.bias += 3.0
    seen = core.standardize(x) - (core.decoder.bias if centred else 0)
    before = (x - sae(x).x_hat).norm()
    assert ResampleDeadLatents().resample(sae, x, 7, optimizer) == 3
    at = [int((seen - row).square().sum(1).argmin()) for row in core.encoder.weight[DEAD]]
    assert OUTLIER in at
    assert len(set(at)) == 3
    torch.testing.assert_close(core.encoder.weight[DEAD], seen[at])
    assert bool((sae.encode(x)[at, DEAD] > 0).all())  # and they fire there
    assert (x - sae(x).x_hat).norm() < (before if name == "composed-ball" else 0.05 * before)


@pytest.mark.parametrize("encoder_norm", [0.2, 1.5])
@pytest.mark.parametrize("name", AFFINE)
def test_affine_latents_point_along_the_residual(name: str, encoder_norm: float) -> None:
    sae, optimizer, x = prepared(name, Adam)
    core = sae.sae
    dead = DEAD[:1]
    core.batches_silent[DEAD[1:]] = 0
    alive = core.batches_silent < 100
    residual = core.standardize(x) - core.autoencode(core.standardize(x)).x_hat
    direction = (residual / residual.norm(dim=1, keepdim=True))[OUTLIER].detach()
    seen = (core.standardize(x)[OUTLIER] - (core.decoder.bias if core.subtract_decoder_bias else 0)).detach()
    overshot = float(direction @ seen) < 0.1 * float(seen.norm())  # a row along that residual would not fire there
    expected = seen / seen.norm() if overshot else direction
    norm = encoder_norm * core.encoder.weight[alive].norm(dim=1).mean()
    ResampleDeadLatents(encoder_norm=encoder_norm).resample(sae, x, 7, optimizer)
    row, atom = core.encoder.weight[dead[0]], core.decoder.atoms[dead[0]]
    torch.testing.assert_close(row / row.norm(), expected)
    codes = sae.encode(x)[OUTLIER].clone()
    assert codes[dead] > 0
    codes[dead] = 0
    missing = core.standardize(x)[OUTLIER] - core.decoder(codes)
    torch.testing.assert_close(atom / atom.norm(), missing / missing.norm(), rtol=0, atol=1e-3)
    rounds = math.log((row.norm() / norm).item()) / math.log(1.25)
    assert rounds == pytest.approx(round(rounds), abs=1e-3)
    assert rounds >= -1e-3


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
    rows.add("sae.projection.log_threshold")

    for key, value in weights(sae).items():
        if key == "sae.projection.log_threshold":
            assert bool((value[DEAD] == math.log(0.1)).all())
        elif key in rows:
            assert not torch.equal(value[DEAD], before[key][DEAD]), key
        if key in rows:
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


def test_offsets_become_the_mean_of_the_live_ones_where_that_makes_latents_fire() -> None:
    sae, optimizer, x = prepared("composed-ball", Adam)
    sae.sae.encoder.set_lambda(1e-12)  # pre-codes are the offsets
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
    sae.sae.batches_silent[DEAD] = 100
    sae.sae.encoder.set_lambda(0.1)
    with torch.no_grad():
        sae.sae.encoder.offset.fill_(-3.0)
    ResampleDeadLatents().resample(sae, x, 9, optimizer)  # at the mean they would be silent
    assert bool((sae.sae.encoder.offset[DEAD] > 0).all())
    assert bool((sae.sae.encoder.offset[ALIVE] == -3).all())


def test_samples_are_drawn_by_their_squared_loss() -> None:
    sae, optimizer, x = prepared("spade", Adam)
    x = torch.cat([x[:4], x[3:4]])  # one of them twice
    x[0] = 1.5 * x[0] - 0.5 * x[1:3].mean(0)
    core = sae.sae
    standardized = core.standardize(x)
    loss = (standardized - core.autoencode(standardized).x_hat).square().sum(1).double().detach()
    drawn, before = torch.zeros(5, dtype=torch.float64), copy.deepcopy(sae.state_dict())
    for step in range(500):
        sae.load_state_dict(before)
        core.batches_silent.fill_(0)
        core.batches_silent[7] = 1000
        ResampleDeadLatents().resample(sae, x, step, optimizer)
        drawn += (core.encoder.weight[7] == standardized).all(-1)
    expected = loss.square() / loss.square().sum()
    expected[3:] = expected[3:].sum()
    assert drawn[:4].sum() == 500
    torch.testing.assert_close(drawn / 500, expected, rtol=0, atol=0.07)
    plain = loss / loss.sum()
    assert (plain[:3] - expected[:3]).abs().max() > 0.14  # the loss itself would be told from that


def test_no_two_latents_take_equal_samples_and_the_longest_silent_go_first() -> None:
    sae, optimizer, x = prepared("spade", Adam)
    core = sae.sae
    core.batches_silent[ALIVE] = 200
    x = x[:2].repeat(5, 1)
    before = weights(sae)
    assert ResampleDeadLatents().resample(sae, x, 7, optimizer) == 2
    moved = (core.encoder.weight != before["sae.encoder.weight"]).any(1)
    assert int(moved.sum()) == 2
    assert moved[DEAD[2]]  # silent for 10**6 batches
    assert not torch.equal(*core.encoder.weight[moved])
    assert int((core.batches_silent == 0).sum()) == 2  # the others wait


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


# -- whether it revives ---------------------------------------------------------------------------------------------


class BatchTopK(Projection):
    """The largest pre-codes of a batch, k times as many as it has samples."""

    def __init__(self, d_sae: int, k: int) -> None:
        super().__init__(d_sae)
        self.k = k

    def forward(self, pre_codes: Tensor) -> Tensor:
        flat = pre_codes.flatten()
        chosen = flat.topk(self.k * len(pre_codes)).indices
        return torch.zeros_like(flat).scatter(0, chosen, flat[chosen].relu()).view_as(pre_codes)


ball = partial(SquaredDistance, lambda_init=0.05, offset_init=1.0)
penalized: Any = partial(ComposedSAE, regularizer=L1, gamma=0.1)
ARCHITECTURES: dict[str, Any] = {
    "relu": partial(ReLUSAE, gamma=0.1),
    "jumprelu": partial(JumpReLUSAE, threshold_init=0.1, bandwidth=0.1, gamma=0.1),
    "topk": partial(TopKSAE, k=8),
    "topk without aux-k": partial(TopKSAE, k=8, gamma=0.0),
    "spade": SpaDE,
    "relu, centred": partial(penalized, encoder=Affine, projection=Orthant, subtract_decoder_bias=True),
    "topk with biases": partial(ComposedSAE, encoder=Affine, projection=partial(KSparse, k=8)),
    "affine simplex": partial(ComposedSAE, encoder=Affine, projection=Simplex),
    "ball": partial(penalized, encoder=ball, projection=Orthant),
    "ball with jump": partial(penalized, encoder=ball, projection=Jump),
    "ball with topk": partial(ComposedSAE, encoder=ball, projection=partial(KSparse, k=8)),
    "signed topk": partial(ComposedSAE, encoder=Affine, projection=partial(AbsTopK, k=8)),
    "batch topk": partial(ComposedSAE, encoder=Affine, projection=partial(BatchTopK, k=8)),
}
N_FEATURES, WIDE, N_LIVE = 256, 128, 16
FEATURES = torch.nn.functional.normalize(
    torch.randn(N_FEATURES, 32, generator=torch.Generator().manual_seed(0)), dim=-1
)


def sparse_sums(n: int, generator: torch.Generator) -> Tensor:
    """Sums of four random directions of 256 in the mean, in 32 dimensions."""
    on = torch.rand(n, N_FEATURES, generator=generator) < 4 / N_FEATURES
    return (on * (0.5 + torch.rand(n, N_FEATURES, generator=generator))) @ FEATURES + 3


class Course:
    """Training on sparse sums in which only the first 16 of 128 latents can fire, until they are resampled."""

    def __init__(self, name: str) -> None:
        pl.seed_everything(0, verbose=False)
        self.sae: BaseSAE = ARCHITECTURES[name](32, d_sae=WIDE)
        self.generator = torch.Generator().manual_seed(1)
        self.sae.initialize(sparse_sums(2048, self.generator))
        self.silence()
        self.optimizer = Adam(self.sae.parameters(), lr=3e-3)

    @torch.no_grad()
    def silence(self) -> None:
        core, dead = self.sae.sae, slice(N_LIVE, None)
        if isinstance(core.encoder, SquaredDistance):
            core.encoder.weight[dead] = 1e3
        else:
            core.encoder.weight[dead] = 0
            if core.encoder.bias is not None:
                core.encoder.bias[dead] = 0 if isinstance(core.projection, AbsTopK) else -1e3
        if isinstance(core.projection, Jump):
            core.projection.log_threshold[dead] = 2.0

    def train(self, n_steps: int) -> None:
        for _ in range(n_steps):
            self.optimizer.zero_grad()
            self.sae.learn(sparse_sums(256, self.generator)).terms["loss"].backward()
            self.optimizer.step()

    def resample(self) -> Tensor:
        """The batch."""
        x = sparse_sums(1024, self.generator)
        assert ResampleDeadLatents(dead_after=50).resample(self.sae, x, 100, self.optimizer) == WIDE - N_LIVE
        return x

    @torch.no_grad()
    def share_firing(self, x: Tensor) -> float:
        """Share of the latents that were dead which fire on some samples."""
        return float(fires(self.sae.encode(x)).any(0)[N_LIVE:].double().mean())

    @torch.no_grad()
    def error(self) -> float:
        return float(self.sae.evaluate(sparse_sums(4096, torch.Generator().manual_seed(2))).terms["mse"])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_resampled_latents_fire_stay_alive_and_lower_the_error(name: str) -> None:
    with_it, without = Course(name), Course(name)
    for course in (with_it, without):
        course.train(100)
        assert course.share_firing(sparse_sums(1024, course.generator)) == 0
    assert with_it.share_firing(with_it.resample()) >= 0.8
    with_it.train(300)
    without.train(300)
    assert with_it.share_firing(sparse_sums(4096, with_it.generator)) >= 0.5
    assert with_it.error() < without.error()


@pytest.mark.parametrize("name", PRESETS)
def test_resampled_latents_fire_where_all_were_dead(name: str) -> None:
    sae, optimizer, _ = prepared(name, Adam)
    x = stream(Clusters(), 256)
    sae.sae.batches_silent.fill_(100)
    assert ResampleDeadLatents().resample(sae, x, 7, optimizer) == D_SAE
    assert fires(sae.encode(x)).any(0).double().mean() >= 0.8


def test_a_resampled_latent_that_falls_silent_again_comes_back_to_aux_k() -> None:
    sae, optimizer, x = prepared("topk", Adam)  # aux-k's dead_after is 3
    ResampleDeadLatents().resample(sae, x, 7, optimizer)
    with torch.no_grad():
        sae.sae.encoder.weight[DEAD] *= 1e-6
    for learned in range(4):
        optimizer.zero_grad()
        sae.learn(x).terms["loss"].backward()
        trained = bool((sae.sae.encoder.weight.grad[DEAD] != 0).any())
        assert trained == (learned >= 2)  # from the third silent batch on


def test_a_latent_that_cannot_be_made_to_fire_stays_with_aux_k() -> None:
    sae, optimizer, x = prepared("topk", Adam)
    core = sae.sae
    core.batches_silent[DEAD[1:]] = 0
    with torch.no_grad():
        x = core.standardizer.inverse(core.decoder.bias).expand(5, -1).clone()  # an encoder sees zeros there
        core.standardizer.input_mean += x[0] - core.standardizer.inverse(core.standardize(x))[0]
        core.decoder.bias.copy_(core.standardize(x)[0])
    ResampleDeadLatents().resample(sae, x, 7, optimizer)
    assert core.batches_silent[DEAD[0]] == 100
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
    every_five = ResampleDeadLatents(every_n_steps=5, dead_after=5)
    trainer = make_trainer(5, callbacks=[every_five], log_every_n_steps=25)  # an epoch
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
        relu = saes["relu"].sae  # what the live latents have in the mean; other resampled ones do not change that
        assert relu.encoder.bias[3].item() == pytest.approx(min(relu.encoder.bias.mean().item(), 0), abs=1e-6)
        assert relu.decoder.weight[3].norm().item() == pytest.approx(
            relu.decoder.weight.norm(dim=1).mean().item(), abs=1e-5
        )


class Counting(ResampleDeadLatents):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.steps: list[int] = []

    def resample(
        self, sae: BaseSAE, x: Tensor, step: int, optimizer: torch.optim.Optimizer, target: Tensor | None = None
    ) -> int:
        self.steps.append(step)
        return super().resample(sae, x, step, optimizer, target)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("until", "steps"), [(None, [4, 8, 12]), (8, [4, 8]), (7, [4]), (0, [])])
def test_when_rounds_are_held(until: int | None, steps: list[int], accumulate: int) -> None:
    callback = Counting(every_n_steps=4, dead_after=2, until_step=until)
    trainer = make_trainer(13, callbacks=[callback], accumulate_grad_batches=accumulate)
    trainer.fit(make("relu"), datamodule=Clusters(60))
    assert callback.steps == steps


class OwnOrthant(Orthant):
    """Somebody's projection, which trains something without telling how that is resampled."""

    def __init__(self, d_sae: int) -> None:
        super().__init__(d_sae)
        self.gain = torch.nn.Parameter(torch.ones(d_sae))

    def forward(self, pre_codes: Tensor) -> Tensor:
        return super().forward(pre_codes) * self.gain


class OwnAffine(Affine):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0


@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "comparison"])
@pytest.mark.parametrize(("encoder", "projection"), [(Affine, OwnOrthant), (OwnAffine, Orthant)])
def test_parts_that_do_not_say_how_are_refused_before_the_first_step(
    encoder: Any, projection: Any, grouped: bool
) -> None:
    build = partial(ComposedSAE, d_sae=D_SAE, encoder=encoder, projection=projection, regularizer=L1)
    module: Any = Comparison(D_IN, {"own": build}) if grouped else build(D_IN)
    trainer = make_trainer(3, callbacks=[ResampleDeadLatents(every_n_steps=100)])
    name = (projection if encoder is Affine else encoder).__name__
    with pytest.raises(
        ValueError, match=f"can be resampled only if every part defines how, but {name} has no method restart"
    ):
        trainer.fit(module, datamodule=Clusters())
    assert trainer.global_step == 0


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
