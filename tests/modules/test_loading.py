import contextlib
import copy
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from sae_lightning import load_module, load_sae
from sae_lightning.modules import BaseSAE, Comparison, ReLUSAE, SpaDE
from sae_lightning.nn import L1, Decoder, KSparse, SquaredDistance
from tests.helpers.data import D_IN, Clusters
from tests.helpers.modules import D_SAE, PRESETS, is_plain, make
from tests.helpers.pickles import Payload
from tests.helpers.tensors import assert_same
from tests.helpers.trainers import fit, make_trainer

X = 10 + 4 * torch.randn(64, D_IN, generator=torch.Generator().manual_seed(5))
MEMBERS = ("topk", "composed", "spade")
FRESH = """
import sys, torch
from sae_lightning import load_sae
paths, x = torch.load(sys.argv[1])
codes = {}
for name, (path, member) in paths.items():
    sae = load_sae(path, member)
    assert not sae.training
    with torch.no_grad():
        codes[name] = (type(sae).__name__, sae.encode(x), sae(x).x_hat)
torch.save(codes, sys.argv[2])
"""


class Own(BaseSAE):
    """A user's architecture."""

    def __init__(self, d_in: int, d_sae: int, k: int = 3, gamma: float = 0.1) -> None:
        super().__init__(
            SquaredDistance(d_in, d_sae),
            PRESETS["composed-distance"].keywords["projection"](d_sae),
            Decoder(d_in, d_sae),
            None,
            gamma,
            standardize=True,
            subtract_decoder_bias=False,
            init="unit",
            n_init_samples=10,
        )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(scope="module")
def trained(folder: Path) -> dict[str, tuple[str, str | None, BaseSAE]]:
    """Checkpoints by name: path, member, and the SAE as it was in memory."""
    made: dict[str, tuple[str, str | None, BaseSAE]] = {}
    for name in PRESETS:
        sae = make(name)
        fit(sae, 4).save_checkpoint(folder / f"{name}.ckpt")
        made[name] = (str(folder / f"{name}.ckpt"), None, sae.eval())
    comparison = Comparison(D_IN, {name: PRESETS[name] for name in MEMBERS})
    fit(comparison, 4).save_checkpoint(folder / "comparison.ckpt")
    for name in MEMBERS:
        made[f"member {name}"] = (str(folder / "comparison.ckpt"), name, comparison.saes()[name].eval())
    return made


@pytest.fixture(scope="module")
def fresh(trained: dict[str, Any], folder: Path) -> dict[str, tuple[str, torch.Tensor, torch.Tensor]]:
    """What another process makes of the checkpoints."""
    torch.save(({name: entry[:2] for name, entry in trained.items()}, X), folder / "in.pt")
    command = [sys.executable, "-c", FRESH, str(folder / "in.pt"), str(folder / "out.pt")]
    subprocess.run(command, check=True, timeout=120, cwd=folder)
    return torch.load(folder / "out.pt")


EVERY_CHECKPOINT = pytest.mark.parametrize("name", [*PRESETS, *(f"member {name}" for name in MEMBERS)])


@EVERY_CHECKPOINT
def test_a_fresh_process_gives_the_same_codes(trained: Any, fresh: Any, name: str) -> None:
    sae = trained[name][2]
    cls, codes, x_hat = fresh[name]
    assert cls == type(sae).__name__
    assert torch.equal(codes, sae.encode(X))
    assert torch.equal(x_hat, sae(X).x_hat)
    assert bool((codes > 0).any())


@EVERY_CHECKPOINT
def test_load_sae(trained: Any, name: str) -> None:
    path, member, sae = trained[name]
    loaded = load_sae(path, member)
    assert not loaded.training
    assert_same(loaded.state_dict(), sae.state_dict())
    assert_same(loaded.describe(), sae.describe())
    assert loaded.gamma == sae.gamma
    assert loaded.initialized


@pytest.mark.parametrize("name", [*PRESETS, "comparison"])
def test_checkpoints_are_plain(trained: Any, folder: Path, name: str) -> None:
    checkpoint = torch.load(folder / f"{name}.ckpt", weights_only=True)
    assert is_plain(checkpoint["sae_lightning"])
    assert is_plain(dict(checkpoint["hyper_parameters"]))
    assert checkpoint["sae_lightning"]["samples_seen"] == load_module(folder / f"{name}.ckpt").samples_seen == 128


def test_load_module_of_a_comparison(trained: Any, folder: Path) -> None:
    module = load_module(folder / "comparison.ckpt")
    assert isinstance(module, Comparison)
    assert tuple(module.saes()) == MEMBERS
    projection = module.saes()["composed"].sae.projection
    assert isinstance(projection, KSparse)
    assert projection.k == 4
    assert isinstance(module.saes()["composed"].regularizer, L1)


@pytest.mark.parametrize("name", ["spade", "relu", "jumprelu", "topk"])
def test_lightnings_own_loading(trained: Any, name: str) -> None:
    path, _, sae = trained[name]
    loaded = type(sae).load_from_checkpoint(path, weights_only=True)
    assert_same(loaded.state_dict(), sae.state_dict())
    assert loaded.gamma == sae.gamma
    assert loaded.samples_seen == 128


def test_what_was_loaded_can_be_trained_on_and_saved(trained: Any, tmp_path: Path) -> None:
    sae = load_sae(trained["composed"][0])
    assert not any(parameter.requires_grad for parameter in sae.parameters())
    with pytest.raises(ValueError, match=r"all of them are frozen, .* call requires_grad_\(True\) on it"):
        fit(sae, 2)
    sae.requires_grad_(True).train()
    mean = sae.sae.standardizer.input_mean.clone()
    fit(sae, 2, Clusters(seed=3)).save_checkpoint(tmp_path / "again.ckpt")
    assert torch.equal(load_sae(tmp_path / "again.ckpt").sae.standardizer.input_mean, mean)


def test_a_users_own_architecture(tmp_path: Path) -> None:
    sae = Own(D_IN, 7, gamma=0.5)
    fit(sae, 1).save_checkpoint(tmp_path / "a.ckpt")
    loaded = load_sae(tmp_path / "a.ckpt")
    assert isinstance(loaded, Own)
    assert loaded.gamma == 0.5
    assert torch.equal(loaded.encode(X), sae.eval().encode(X))


def test_numbers_of_numpy_as_arguments(tmp_path: Path) -> None:
    # as in `for gamma in np.logspace(-3, 0, 4)`
    sae = SpaDE(D_IN, np.int64(D_SAE), gamma=np.logspace(-3, 0, 4)[1])
    fit(sae, 1).save_checkpoint(tmp_path / "a.ckpt")
    assert load_sae(tmp_path / "a.ckpt").gamma == pytest.approx(0.01)


def test_optimizers_and_schedules_stay_out_of_the_checkpoint(tmp_path: Path) -> None:
    sae = ReLUSAE(
        D_IN,
        D_SAE,
        optimizer=lambda params: torch.optim.AdamW(params, lr=0.1),
        lr_scheduler=lambda optimizer: CosineAnnealingLR(optimizer, 10),
    )
    fit(sae, 1).save_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(load_sae(tmp_path / "a.ckpt").encode(X), sae.encode(X))


# -- what is refused ------------------------------------------------------------------------------------------------


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.ckpt"):
        load_sae(tmp_path / "none.ckpt")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_file(trained: Any, tmp_path: Path, share: float) -> None:
    data = Path(trained["spade"][0]).read_bytes()
    path = tmp_path / "short.ckpt"
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"short\.ckpt' cannot be read \(truncated or damaged\?\)"):
        load_sae(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_random_bytes(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    path = tmp_path / "random.ckpt"
    for size in (1, 2, 3, 5, 20, 100, 5000):
        for _ in range(100):
            # half of them start like a pickle
            path.write_bytes(generator.choice([b"", b"\x80\x02"]) + generator.bytes(size))
            with pytest.raises(ValueError, match=r"random\.ckpt' cannot be read \(truncated or damaged\?\)"):
                load_sae(path)


def test_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_sae(tmp_path)


class Plain(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(D_IN, 1)

    def training_step(self, batch: Any) -> torch.Tensor:
        return self.layer(batch.activations).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def test_the_checkpoint_of_another_project(tmp_path: Path) -> None:
    trainer = make_trainer(1)
    trainer.fit(Plain(), train_dataloaders=Clusters().train_dataloader())
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"plain\.ckpt' was not made by sae_lightning"):
        load_sae(tmp_path / "plain.ckpt")


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, torch.ones(3)], ids=["list", "dict", "tensor"])
def test_no_checkpoint_at_all(tmp_path: Path, value: Any) -> None:
    torch.save(value, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"a\.ckpt' was not made by sae_lightning"):
        load_module(tmp_path / "a.ckpt")


def test_unknown_members(trained: Any, folder: Path) -> None:
    for member in (None, "nobody", ""):
        with pytest.raises(ValueError, match=rf"one of \['composed', 'spade', 'topk'\], but is {member!r}"):
            load_sae(folder / "comparison.ckpt", member)
    with pytest.raises(ValueError, match="member must be None for a checkpoint of one SpaDE, but is 'spade'"):
        load_sae(trained["spade"][0], "spade")


def at_the_top(saved: dict[str, Any], description: dict[str, Any]) -> None:
    saved.update(description)


def as_a_member(saved: dict[str, Any], description: dict[str, Any]) -> None:
    saved["init_args"]["members"]["spade"] = description


def as_a_part(saved: dict[str, Any], description: dict[str, Any]) -> None:
    saved["init_args"]["members"]["composed"]["init_args"]["encoder"] = description


@pytest.mark.parametrize("put", [at_the_top, as_a_member, as_a_part])
@pytest.mark.parametrize(
    ("class_path", "argument"),
    [
        ("os.system", "command"),
        ("subprocess.Popen", "args"),
        ("builtins.exec", "source"),
        ("pathlib.Path.touch", "x"),
        ("torch.nn.Linear", "x"),
        ("no_such_package.Thing", "x"),
        ("sae_lightning.modules.NoSuchSAE", "x"),
        ("SpaDE", "x"),
        ("", "x"),
    ],
)
def test_crafted_class_paths(
    trained: Any, folder: Path, tmp_path: Path, put: Callable[..., None], class_path: str, argument: str
) -> None:
    checkpoint = torch.load(folder / "comparison.ckpt", weights_only=True)
    command = f"touch {tmp_path / 'executed'}"
    put(checkpoint["sae_lightning"], {"class_path": class_path, "init_args": {argument: command}})
    torch.save(checkpoint, tmp_path / "crafted.ckpt")
    with pytest.raises(
        ValueError, match=rf"class '{class_path}' (is not known|does not exist|must derive from|must be an import path)"
    ):
        load_module(tmp_path / "crafted.ckpt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("class_path", ["sae_lightning.nn.encoders.Affine", "sae_lightning.nn.decoder.Decoder"])
def test_a_part_that_is_no_member(trained: Any, folder: Path, tmp_path: Path, class_path: str) -> None:
    checkpoint = torch.load(folder / "comparison.ckpt", weights_only=True)
    as_a_member(checkpoint["sae_lightning"], {"class_path": class_path, "init_args": {"d_sae": 4}})
    torch.save(checkpoint, tmp_path / "crafted.ckpt")
    with pytest.raises(ValueError, match=r"must derive from|takes no argument|must make SAEs"):
        load_module(tmp_path / "crafted.ckpt")


def test_code_in_a_checkpoint_is_not_run(trained: Any, tmp_path: Path) -> None:
    checkpoint = torch.load(trained["spade"][0], weights_only=True)
    checkpoint["payload"] = Payload(Path.touch, tmp_path / "executed")
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=r"bad\.ckpt' cannot be read") as caught:
        load_sae(tmp_path / "bad.ckpt")
    assert str(caught.value).endswith(": it holds more than tensors and plain values (getattr)")  # which finds `touch`
    assert not (tmp_path / "executed").exists()


# -- malformed content ----------------------------------------------------------------------------------------------

WRONG_VALUES = (None, True, -1, 2**70, 1e308, float("nan"), "x", "", [], [1], {}, {"a": 1}, torch.zeros(2))


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of everything within nested dicts."""
    found = [path] if path else []
    for key in value if isinstance(value, dict) else ():
        found += places(value[key], (*path, key))
    return found


def planted(checkpoint: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        checkpoint = checkpoint[key]
    checkpoint[path[-1]] = value


@pytest.mark.parametrize("name", ["spade", "comparison"])
def test_any_wrong_value_gives_a_value_error(trained: Any, folder: Path, tmp_path: Path, name: str) -> None:
    """In every place of what a checkpoint says of itself, and of its weights."""
    whole = torch.load(folder / f"{name}.ckpt", weights_only=True)
    keys = ("sae_lightning", "state_dict")
    del whole["sae_lightning"]["optimizers"]  # which only a run that is resumed reads: see test_optimizers.py
    paths = [path for key in keys for path in places(whole[key], (key,))]
    assert len(paths) > 20
    tried, loaded = 0, []
    for i, path in enumerate(paths):
        for value in WRONG_VALUES[i % 2 :: 2] if name == "comparison" else WRONG_VALUES:
            checkpoint = copy.deepcopy({key: whole[key] for key in keys})
            planted(checkpoint, path, value)
            torch.save(checkpoint, tmp_path / "wrong.ckpt")
            with contextlib.suppress(ValueError):
                load_module(tmp_path / "wrong.ckpt")
                loaded.append((path[-1], value))
            tried += 1
    assert tried > 250
    # values of the right type, within their range, are as good as what was there
    for key, value in loaded:
        right = (True, None, 2**70, 1e308) if key != "init_args" else ({},)
        assert any(value is other or (value == other and type(value) is type(other)) for other in right), (key, value)
    assert len(loaded) < tried / 10


@pytest.mark.parametrize("key", ["sae_lightning", "state_dict"])
@pytest.mark.parametrize("name", ["class_path", "init_args", "samples_seen", None])
def test_missing_parts_are_named(trained: Any, tmp_path: Path, key: str, name: str | None) -> None:
    checkpoint = torch.load(trained["spade"][0], weights_only=True)
    if key == "state_dict" and name is not None:
        name = next(iter(checkpoint[key]))
    (checkpoint if name is None else checkpoint[key]).pop(key if name is None else name)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=name or f"{key}|was not made by sae_lightning"):
        load_sae(tmp_path / "a.ckpt")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("key", ["sae.encoder.weight", "sae.encoder.raw_lambda", "sae.standardizer.input_mean"])
def test_weights_that_are_not_finite_are_refused(trained: Any, tmp_path: Path, key: str, value: float) -> None:
    checkpoint = torch.load(trained["spade"][0], weights_only=True)
    checkpoint["state_dict"][key].flatten()[-1] = value
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=f"a.ckpt' is damaged: '{key}' must be finite, but 1 of its .* values are not"):
        load_sae(tmp_path / "a.ckpt")


def test_sizes_that_ask_for_more_memory_than_the_file_holds_are_refused(trained: Any, tmp_path: Path) -> None:
    """By a description, and by weights that claim a shape without holding its values."""
    whole = torch.load(trained["spade"][0], weights_only=True)
    huge = copy.deepcopy(whole)
    huge["sae_lightning"]["init_args"]["d_sae"] = 2**34
    torch.save(huge, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=rf"must have shape \({2**34},( \d+)?\), but have \({D_SAE},"):
        load_sae(tmp_path / "a.ckpt")
    for key in ("sae.encoder.weight", "sae.decoder.weight"):
        huge["state_dict"][key] = torch.zeros(1).expand(2**34, D_IN)
    torch.save(huge, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"'sae\.encoder\.weight' must be a dense tensor"):
        load_sae(tmp_path / "a.ckpt")
    huge["state_dict"]["sae.encoder.weight"] = torch.sparse_coo_tensor(size=(2**34, D_IN), check_invariants=False)
    torch.save(huge, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"'sae\.encoder\.weight' must be a dense tensor"):
        load_sae(tmp_path / "a.ckpt")


def test_compressed_parts_are_refused(trained: Any, tmp_path: Path) -> None:
    """A few bytes may unpack to any number, and torch writes none."""
    with (
        zipfile.ZipFile(trained["spade"][0]) as source,
        zipfile.ZipFile(tmp_path / "a.ckpt", "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for part in source.infolist():
            target.writestr(part.filename, source.read(part))
    with pytest.raises(ValueError, match=r"a.ckpt' cannot be read .*: '.*' in it is compressed"):
        load_sae(tmp_path / "a.ckpt")


def test_a_constructor_that_looks_at_values_can_be_loaded(tmp_path: Path) -> None:
    """Sizes are compared without memory; a user's class may not work without."""
    sae = Curious(D_IN, 7)
    fit(sae, 1).save_checkpoint(tmp_path / "a.ckpt")
    assert torch.equal(load_sae(tmp_path / "a.ckpt").encode(X), sae.eval().encode(X))


class Curious(Own):
    """A user's architecture whose constructor reads a value."""

    def __init__(self, d_in: int, d_sae: int) -> None:
        super().__init__(d_in, d_sae)
        self.largest = float(self.sae.encoder.weight.detach().max())


# -- hostile descriptions -------------------------------------------------------------------------------------------


def composed(tmp_path: Path, projection: Any) -> Path:
    """A checkpoint of a ComposedSAE, which names this as its projection."""
    encoder = {"class_path": "sae_lightning.nn.encoders.Affine", "init_args": {}}
    arguments = {"d_in": 8, "d_sae": 16, "encoder": encoder, "projection": projection}
    saved = {"class_path": "sae_lightning.modules.composed.ComposedSAE", "init_args": arguments, "samples_seen": 0}
    torch.save({"sae_lightning": saved, "state_dict": {}}, tmp_path / "hostile.ckpt")
    return tmp_path / "hostile.ckpt"


@pytest.mark.parametrize(
    "name", ["sources.tagged.TaggedCorpus", "hosts.image.ModuleHost", "hosts.text.TextHost", "reading.WindowReader"]
)
def test_a_model_is_made_of_parts_and_not_of_what_reads_files(name: str, tmp_path: Path) -> None:
    import sae_lightning.data.activations.hosts
    import sae_lightning.data.activations.reading
    import sae_lightning.data.sources  # noqa: F401

    path = composed(tmp_path, {"class_path": f"sae_lightning.data.{name}", "init_args": {}})
    with pytest.raises(ValueError, match="is no model or part of one, so a file may not name it"):
        load_module(path)


def test_a_small_file_is_not_endless(tmp_path: Path) -> None:
    value: Any = "A"
    for _ in range(40):
        value = [value] * 2
    for projection in (value, {"class_path": value, "init_args": {}}):
        with pytest.raises(ValueError, match="a description must hold at most 100,000 values"):
            load_module(composed(tmp_path, projection))


@pytest.mark.parametrize("tail", [b"", b"PK\5\6", b"PK\5\6" + bytes(18), b"x"])
def test_a_checkpoint_that_unpacks_to_more_than_it_is_is_refused(trained: Any, tmp_path: Path, tail: bytes) -> None:
    packed = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(trained["spade"][0]) as file, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for part in file.infolist():
            target.writestr(part.filename, file.read(part))
    packed.write_bytes(packed.read_bytes() + tail)
    with pytest.raises(ValueError, match=r"packed\.ckpt' cannot be read"):
        load_sae(packed)


def test_what_a_class_of_this_package_cannot_be_made_of_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    members = {
        name: {"class_path": "sae_lightning.modules.topk.TopKSAE", "init_args": {"d_sae": d_sae, "k": 2}}
        for name, d_sae in {"a": 4_000_000_000, "b": 2**62}.items()
    }
    arguments = {"d_in": 1000, "members": members}
    saved = {"class_path": "sae_lightning.modules.comparison.Comparison", "init_args": arguments, "samples_seen": 0}
    torch.save({"sae_lightning": saved, "state_dict": {}}, tmp_path / "large.ckpt")
    with pytest.raises(ValueError, match=r"large\.ckpt' cannot be loaded"):
        load_module(tmp_path / "large.ckpt")
