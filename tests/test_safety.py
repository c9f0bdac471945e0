"""Files that were tampered with: none of them executes anything when it is read."""

import hashlib
import json
import pickle
import re
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sae_lightning import SeparabilityDataModule, SpaDE, load_codes, load_module, load_sae
from sae_lightning.callbacks import RunCheckpoint
from sae_lightning.data import CachedDataModule, TensorDataModule, sources
from sae_lightning.run.checkpoint import read_checkpoint
from tests.helpers.activations import Numbers, forged, harvest
from tests.helpers.pickles import Payload
from tests.helpers.resuming import arguments
from tests.helpers.runs import QUIET, run_cli
from tests.helpers.trainers import quiet_trainer


def payload(mark):
    """Makes a file when it is unpickled."""
    return Payload(open, str(mark), "w")


@pytest.fixture
def mark(tmp_path):
    """A file that is there only if something was executed."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists()


def test_the_payload_works(tmp_path):
    pickle.loads(pickle.dumps(payload(tmp_path / "executed"))).close()
    assert (tmp_path / "executed").exists()


# ---------------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("run") / "run"
    outcome = run_cli(*arguments("spade", run_dir), "--trainer.max_steps", 14)
    assert outcome.code == 0, outcome.err[-2000:]
    return run_dir


def plant(whole, path, mark, where):
    """Write a checkpoint that is right in all but one place."""
    checkpoint = torch.load(whole, weights_only=True)
    target = checkpoint
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = payload(mark)
    torch.save(checkpoint, path)


PLACES = {
    "weights": ("state_dict", "extra"),
    "loops": ("loops", "extra"),
    "hyperparameters": ("hyper_parameters", "extra"),
    "ours": ("sae_lightning", "extra"),
    "callbacks": ("callbacks", "extra"),
}


def small():
    return SeparabilityDataModule(n_per_concept=40, n_val_per_concept=5, n_test_per_concept=5, batch_size=16, seed=0)


def trained(path, ours=True):
    folder = Path(path).parent
    trainer = quiet_trainer([RunCheckpoint(str(folder / "new"))] if ours else [], max_steps=20, default_root_dir=folder)
    trainer.fit(SpaDE(2, 8, n_init_samples=64), small(), ckpt_path=path)


READERS = {
    "read_checkpoint": read_checkpoint,
    "load_module": load_module,
    "load_sae": load_sae,
    "Trainer.fit": trained,
    "Trainer.fit without our callback": lambda path: trained(path, ours=False),
    "Trainer.test": lambda path: quiet_trainer().test(SpaDE(2, 8), small(), ckpt_path=path),
}


@pytest.mark.parametrize(
    ("reader", "place"),
    [*((reader, "weights") for reader in READERS), *(("Trainer.fit", place) for place in PLACES if place != "weights")],
)
def test_a_checkpoint_executes_nothing(reader, place, run, mark, tmp_path):
    path = tmp_path / "planted.ckpt"
    plant(run / "checkpoints" / "last.ckpt", path, mark, PLACES[place])
    # Lightning's own reader, where no callback of ours is in between, has torch's words
    with pytest.raises((ValueError, pickle.UnpicklingError), match=r"more than tensors and plain values|Weights only"):
        READERS[reader](str(path))


@pytest.mark.parametrize("kind", ["pickle", "old format"])
def test_a_file_that_is_all_pickle_executes_nothing(kind, mark, tmp_path):
    path = tmp_path / "planted.ckpt"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(payload(mark)))
    else:
        torch.save({"state_dict": payload(mark)}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="cannot be read"):
        load_sae(path)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
@pytest.mark.parametrize("older", [False, True])
def test_the_command_line_executes_nothing(command, older, run, mark, tmp_path):
    """Also where it looks for an older checkpoint instead."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    folder = tmp_path / "run" / "checkpoints"
    for name in ("step=14.ckpt", "step=7.ckpt") if older else ("step=14.ckpt",):
        plant(folder / name, folder / name, mark, PLACES["weights"])
    args = arguments("spade", tmp_path / "run")
    outcome = run_cli(command, *args[1:])
    goes_on = command == "fit" and not older
    assert outcome.code == (0 if goes_on else 2)
    assert "holds more than tensors and plain values" in (" ".join(outcome.warnings) if goes_on else outcome.err)
    assert "Traceback" not in outcome.err


# ---------------------------------------------------------------------- classes that a checkpoint names


def popen(mark):
    """What made the command line start a process: a parser builds whatever an argument's value names."""
    command = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(mark)]}}
    return {"class_path": "unittest.mock.Mock", "init_args": {"spec": command}}


def finalize(mark):
    touch = {"class_path": "multiprocessing.util.Finalize", "init_args": {"obj": None, "callback": "os.abort"}}
    return {**touch, "init_args": {**touch["init_args"], "args": [str(mark)], "exitpriority": 0}}


PLANTS = {
    "schedule": lambda saved, mark: saved["init_args"].update(
        lr_scheduler={
            "class_path": "torch.optim.lr_scheduler.LambdaLR",
            "init_args": {"lr_lambda": popen(mark)},
        }
    ),
    "finalizer": lambda saved, mark: saved["init_args"].update(lr_scheduler=finalize(mark)),
    "optimizer": lambda saved, mark: saved["init_args"].update(optimizer=popen(mark)),
    "argument": lambda saved, mark: saved["init_args"].update(gamma=popen(mark)),
    "unknown argument": lambda saved, mark: saved["init_args"].update(hook=popen(mark)),
    "class": lambda saved, mark: saved.update(popen(mark)),
    "name of a function": lambda saved, mark: saved["init_args"].update(lr_scheduler="os.abort"),
    "module that runs on import": lambda saved, mark: saved.update(class_path="runs_on_import.SpaDE"),
    "submodule that runs on import": lambda saved, mark: saved.update(class_path="unittest.__main__.SpaDE"),
    "our own main module": lambda saved, mark: saved.update(class_path="sae_lightning.__main__.SpaDE"),
}


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict", "load_sae"])
@pytest.mark.parametrize("configured", [True, False])
def test_what_a_checkpoint_names_is_neither_built_nor_imported(
    plant, command, configured, run, mark, tmp_path, monkeypatch
):
    """Refused, whatever the command line says of the model; the message names the class or the argument."""
    (tmp_path / "runs_on_import.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    PLANTS[plant](checkpoint["sae_lightning"], mark)
    path = tmp_path / "planted.ckpt"
    torch.save(checkpoint, path)
    before = set(sys.modules)
    if command == "load_sae":
        with pytest.raises(ValueError, match=r"planted.ckpt' cannot be loaded: ") as refusal:
            load_sae(path)
        message = str(refusal.value)
    else:
        args = arguments("spade", tmp_path / "run")[1:] if configured else DATA
        outcome = run_cli(command, *args, "--run_dir", tmp_path / "run", "--ckpt_path", path)
        assert outcome.code == 2
        message = outcome.err
        assert "Traceback" not in message
    named = ("takes no argument", "is not known", "must derive from", "is a checkpoint of", "does not exist")
    assert any(words in message for words in named), message
    assert not {"runs_on_import", "unittest.__main__", "sae_lightning.__main__"} & (set(sys.modules) - before)
    assert not (tmp_path / "run").exists()


DATA = ["--data", "SeparabilityDataModule", "--data.n_per_concept", 100, "--data.n_val_per_concept", 10]
DATA += ["--data.n_test_per_concept", 10, "--data.batch_size", 64, *QUIET]
OWN = """
from sae_lightning.modules import SpaDE


class Mine(SpaDE):
    \"\"\"A user's architecture.\"\"\"
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A user's module in the current folder, and a checkpoint of its class that another process made."""
    (tmp_path / "my_sae.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)
    args = ["--model", "my_sae.Mine", "--model.d_sae", 8, "--model.n_init_samples", 64, *DATA]
    args += ["--trainer.max_steps", 3, "--run_dir", tmp_path / "run"]
    outcome = run_cli("fit", *args)
    assert outcome.code == 0, outcome.err[-2000:]
    yield tmp_path / "run" / "checkpoints" / "last.ckpt"
    sys.modules.pop("my_sae", None)


@pytest.mark.slow
def test_a_users_class_is_known_once_the_user_names_it(own, tmp_path):
    refusal = "class 'my_sae.Mine' is not known: .* If you trust 'my_sae', give --trust my_sae"
    args = [*DATA, "--run_dir", tmp_path / "test", "--ckpt_path", own]
    del sys.modules["my_sae"]
    with pytest.raises(ValueError, match=refusal):
        load_sae(own)
    outcome = run_cli("test", *args)
    assert outcome.code == 2
    assert re.search(refusal, outcome.err)
    assert "my_sae" not in sys.modules
    for named in (["--trust", "[my_sae]"], ["--trust+", "my_sae"], ["-c", tmp_path / "run" / "config.yaml"]):
        sys.modules.pop("my_sae", None)
        outcome = run_cli("test", *named, *args)
        assert outcome.code == 0, outcome.err[-2000:]
        assert type(load_sae(own)).__name__ == "Mine"
    del sys.modules["my_sae"]
    assert type(load_sae(own, trust=["my_sae"])).__name__ == "Mine"
    with pytest.raises(ValueError, match="trust must name modules that can be imported, but 'no_such' cannot"):
        load_sae(own, trust=["no_such"])
    outcome = run_cli("test", *args, "--trust", "[no_such]")
    assert outcome.code == 2
    assert "error: --trust must name modules that can be imported, but 'no_such' cannot" in outcome.err


DAMAGED = {
    "moments of another shape": (("optimizer_states", 0, "state", 0, "exp_avg"), torch.zeros(1)),
    "moments that hold no values": (("optimizer_states", 0, "state", 0, "exp_avg"), torch.zeros(1).expand(9, 9)),
    "no optimizer": (("optimizer_states",), []),
    "no loops": (("loops",), {}),
    "callbacks": (("callbacks",), 7),
    "step": (("global_step",), "x"),
    "version": (("pytorch-lightning_version",), 5),
    "samples": (("sae_lightning", "samples_seen"), 2**70),
    "divergence": (("callbacks", "Divergence", "found"), {"a": {"nope": 1}}),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_training_is_not_resumed_from_a_checkpoint_that_is_damaged_in_any_place(damage, run, tmp_path):
    where, value = DAMAGED[damage]
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    target = checkpoint
    for key in where[:-1]:
        target = target[key]
    target[where[-1]] = value
    for path in (tmp_path / "run" / "checkpoints").glob("step=*.ckpt"):
        torch.save(checkpoint, path)
    outcome = run_cli(*arguments("spade", tmp_path / "run"), "--trainer.max_steps", 20)
    assert outcome.code in (1, 2)
    assert outcome.err.rstrip().rpartition("\n")[2].startswith("error: ")
    assert "checkpoint" in outcome.err.rstrip().rpartition("\n")[2]
    assert "Traceback" not in outcome.err


def test_optimizer_and_schedule_come_from_the_users_configuration_alone(run, tmp_path):
    """In fit; a run that is resumed with the configuration of its folder trains as before."""
    shutil.copytree(run, tmp_path / "run", symlinks=True)
    args = arguments("spade", tmp_path / "run")
    constant = ["--model.lr_scheduler", "torch.optim.lr_scheduler.ConstantLR", "--model.lr_scheduler.factor", 0.5]
    outcome = run_cli(*args, *constant, "--trainer.max_steps", 20)
    assert outcome.code == 2
    assert "model.lr_scheduler must be that of the checkpoint, torch.optim.lr_scheduler.CosineAnnealingLR, but is" in (
        outcome.err
    )
    outcome = run_cli(*args, "--trainer.max_steps", 20)
    assert outcome.code == 0, outcome.err[-2000:]
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["model"]["init_args"]["lr_scheduler"]["class_path"].endswith(".CosineAnnealingLR")
    assert config["model"]["class_path"] == "sae_lightning.modules.spade.SpaDE"
    assert config["model"]["init_args"]["d_sae"] == load_sae(run / "checkpoints" / "last.ckpt").d_sae


# ---------------------------------------------------------------------- tensors


def planted_npy(path, mark):
    np.save(path, np.array([payload(mark)], dtype=object), allow_pickle=True)


def planted_npz(path, mark):
    with path.open("wb") as file:
        np.savez(file, x=np.array([payload(mark)], dtype=object))


def planted_safetensors(path, mark):
    header = json.dumps({"__metadata__": {"pickle": "yes"}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + pickle.dumps(payload(mark)))


FILES = {
    "x.npy": planted_npy,
    "z.npy": planted_npz,
    "p.npy": lambda path, mark: path.write_bytes(pickle.dumps(payload(mark))),
    "x.pt": lambda path, mark: torch.save(payload(mark), path),
    "y.pt": lambda path, mark: torch.save({"x": torch.zeros(3, 3), "y": payload(mark)}, path),
    "o.pt": lambda path, mark: torch.save(payload(mark), path, _use_new_zipfile_serialization=False),
    "p.pt": lambda path, mark: path.write_bytes(pickle.dumps(payload(mark), protocol=2)),  # the one that torch expects
    "x.safetensors": planted_safetensors,
    "p.safetensors": lambda path, mark: path.write_bytes(pickle.dumps(payload(mark))),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("argument", ["path", "labels"])
def test_activations_and_labels_execute_nothing(name, argument, mark, tmp_path):
    torch.save(torch.eye(3).repeat(10, 1), tmp_path / "whole.pt")
    path = tmp_path / name
    FILES[name](path, mark)
    given = {"path": str(tmp_path / "whole.pt"), argument: str(path)}
    with pytest.raises(ValueError, match=f"{name}' cannot be read as a tensor"):
        TensorDataModule(**given)


@pytest.mark.parametrize("name", ["x.safetensors", "p.safetensors"])
def test_codes_execute_nothing(name, mark, tmp_path):
    FILES[name](tmp_path / name, mark)
    with pytest.raises(ValueError, match=f"{name}.* cannot be read"):
        load_codes(tmp_path / name)


# ---------------------------------------------------------------------- caches


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    pytest.importorskip("litdata")
    return harvest(tmp_path_factory.mktemp("cache") / "cache", Numbers(300, 30))


def plant_items(folder, split, mark):
    """Give the chunks of a split items that consist of one pickled object, with the right sizes and checksums."""
    planted = pickle.dumps(payload(mark))

    def change(manifest):
        for chunk in manifest["layers"]["first"]["splits"][split]:
            path, n = folder / chunk["file"], len(chunk["rows"])
            items = [struct.pack("<I", len(planted)) + planted] * n
            offsets = np.cumsum([4 * (n + 2), *map(len, items)]).astype(np.uint32)
            content = np.uint32(n).tobytes() + offsets.tobytes() + b"".join(items)
            path.write_bytes(content.ljust(chunk["bytes"], b"\0"))
            chunk["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()

    forged(folder / "manifest.json", lambda manifest: change(manifest) and None)


def plant_index(folder, split, kind):
    """Let the index say that items are of a kind."""
    path = folder / "first" / split / "index.json"
    index = json.loads(path.read_text())
    index["config"]["data_format"] = [kind]
    index["config"]["data_spec"] = None
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("kind", ["pickle", "graph:pickle", "jpeg", "file"])
@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("remote", [False, True])
def test_a_cache_whose_index_names_pickled_items_executes_nothing(kind, split, remote, cache, mark, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    plant_items(folder, split, mark)
    data = CachedDataModule(f"local:{folder}" if remote else str(folder), "first", batch_size=8, seed=0)
    plant_index(folder, split, kind)
    with pytest.raises(ValueError, match=rf"first/{split}/index\.json differs from the one that was written"):
        data.setup()


@pytest.mark.parametrize("kind", ["pickle", "graph:pickle", "jpeg", "file"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_an_index_that_is_replaced_after_it_was_checked_executes_nothing(kind, split, cache, mark, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    data = CachedDataModule(str(folder), "first", batch_size=8, seed=0)
    data.setup()
    plant_items(folder, split, mark)
    plant_index(folder, split, kind)
    message = rf"cache must hold tensors only, but the index of '.*first/{split}' says that .* kind '{kind}'"
    with pytest.raises(ValueError, match=message):
        next(iter(data.train_dataloader())) if split == "train" else data.split("val")


def test_a_planted_manifest_chooses_no_class(cache, mark, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    source = {"class_path": "builtins.open", "init_args": {"file": str(mark), "mode": "w"}}
    forged(folder / "manifest.json", lambda manifest: manifest["config"].update(source=source))
    data = CachedDataModule(str(folder), "first", batch_size=8, seed=0)
    data.setup()
    with pytest.raises(ValueError, match=r"source must be given to show examples of builtins\.open"):
        data.contexts("test", [0])


@pytest.mark.parametrize("name", ["TextFiles", "Source", "annotations", "base", "TextExample", "__name__"])
def test_a_planted_source_ends_with_a_message(name, cache, tmp_path):
    folder = tmp_path / "cache"
    shutil.copytree(cache, folder)
    kind = getattr(sources, name, None)
    path = f"{getattr(kind, '__module__', 'x')}.{name}"
    source = {"class_path": path, "init_args": {"no_such": 1}}
    forged(folder / "manifest.json", lambda manifest: manifest["config"].update(source=source))
    data = CachedDataModule(str(folder), "first", batch_size=8, seed=0)
    data.setup()
    with pytest.raises(ValueError, match=r"source must be given to show examples|manifest\.json is not valid"):
        data.contexts("test", [0])
