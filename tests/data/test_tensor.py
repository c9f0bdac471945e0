import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_lightning.data import TensorDataModule, read_tensor
from tests.helpers.pickles import Payload

N, D_IN = 50, 3
X = torch.randn(N, D_IN, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(N) % 4 - 1  # -1 ... 2
OVERLAPPING = torch.rand(N, 3, generator=torch.Generator().manual_seed(1)) < 0.5
SPLITS: Any = ("train", "val", "test")


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Write what is given by the ending of the name; return the path."""

    def write(value: Any, name: str = "x.pt") -> str:
        path = tmp_path / name
        if path.suffix == ".npy":
            np.save(path, value.numpy() if isinstance(value, torch.Tensor) else value)
        elif path.suffix == ".safetensors":
            save_file(value if isinstance(value, dict) else {"x": value}, path)
        else:
            torch.save(value, path)
        return str(path)

    return write


def contents(data: TensorDataModule) -> torch.Tensor:
    return torch.cat([data.split(split).activations for split in SPLITS])


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors", "x.pt", "x.pth"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int64, torch.bool])
def test_reads_every_format(save: Any, name: str, dtype: torch.dtype) -> None:
    wanted = X.to(dtype)
    read = read_tensor(save(wanted, name))
    assert read.dtype == dtype
    assert torch.equal(read, wanted)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pt"])
def test_reads_bfloat16_and_named_tensors(save: Any, name: str) -> None:
    path = save({"a": X.bfloat16(), "b": LABELS}, name)
    assert torch.equal(read_tensor(path, "a"), X.bfloat16())
    assert torch.equal(read_tensor(path, "b"), LABELS)
    for key in (None, "c"):
        with pytest.raises(ValueError, match=rf"key must name one of the tensors \['a', 'b'\] in .*, but is {key!r}"):
            read_tensor(path, key)


def test_a_dict_of_one_needs_no_key(save: Any) -> None:
    assert torch.equal(read_tensor(save({"a": X, "note": "text", 3: None})), X)


def test_keys_of_different_types(save: Any) -> None:
    path = save({"a": X, 3: X})
    assert torch.equal(read_tensor(path, "a"), X)


@pytest.mark.parametrize("name", ["x.npy", "x.pt"])
def test_a_key_for_a_file_without_names(save: Any, name: str) -> None:
    with pytest.raises(ValueError, match=r"key .*'layer_3'"):
        read_tensor(save(X, name), "layer_3")


def test_a_tensor_saved_with_its_gradient(save: Any) -> None:
    data = TensorDataModule(save(X.clone().requires_grad_()), batch_size=4)
    assert not next(iter(data.train_dataloader())).activations.requires_grad


@pytest.mark.parametrize("value", [[X, X], "text", 3, {"a": "text"}], ids=["list", "text", "int", "no tensor"])
def test_a_file_without_a_tensor(save: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"must hold a tensor, but holds a|key must name one of the tensors"):
        read_tensor(save(value))


def test_a_missing_file(tmp_path: Path) -> None:
    path = str(tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError, match=path):
        TensorDataModule(path)
    with pytest.raises(FileNotFoundError):
        read_tensor(tmp_path)  # a folder


def test_a_missing_file_of_labels(save: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"labels\.npy"):
        TensorDataModule(save(X), str(tmp_path / "labels.npy"))


def test_a_wrong_ending(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("1,2\n")
    with pytest.raises(ValueError, match=r"x\.csv.* its ending must be \.npy, \.safetensors or \.pt"):
        read_tensor(path)


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors", "x.pt"])
@pytest.mark.parametrize("kept", [0, 1, 9, 200, -1], ids="kept {}".format)
def test_a_truncated_file(save: Any, name: str, kept: int) -> None:
    path = Path(save(X, name))
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=f"{name}' cannot be read as a tensor"):
        read_tensor(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("name", ["x.npy", "x.safetensors", "x.pt"])
def test_random_bytes(tmp_path: Path, name: str) -> None:
    generator = np.random.default_rng(0)
    for size in (5, 100, 3000):
        for _ in range(20):
            path = tmp_path / name
            path.write_bytes(generator.bytes(size))
            with pytest.raises(ValueError, match=f"{name}' cannot be read as a tensor"):
                read_tensor(path)


@pytest.mark.parametrize("name", ["x.npy", "x.pt"])
def test_code_in_a_file_is_not_run(save: Any, tmp_path: Path, name: str) -> None:
    payload = Payload(os.system, f"touch {tmp_path / 'executed'}")
    value = np.array([payload], dtype=object) if name.endswith("npy") else {"x": X, "payload": payload}
    with pytest.raises(ValueError, match=f"{name}' cannot be read as a tensor"):
        TensorDataModule(save(value, name))
    assert not (tmp_path / "executed").exists()


# -- the data module ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["x.npy", "x.safetensors", "x.pt"])
def test_splits_are_disjoint_and_cover_everything(save: Any, name: str) -> None:
    data = TensorDataModule(save(X, name), val_fraction=0.2, test_fraction=0.1, batch_size=8, eval_batch_size=3)
    assert (data.d_in, data.n_concepts, data.concept_names) == (3, 0, [])
    assert [len(data.split(split)) for split in SPLITS] == [35, 10, 5]
    assert sorted(contents(data).tolist()) == sorted(X.tolist())
    assert contents(data).tolist() != X.tolist()  # shuffled
    batches = list(data.train_dataloader())
    assert [len(b.activations) for b in batches] == [8] * 4
    assert all((b.concepts == -1).all() and b.concepts.dtype == torch.int64 for b in batches)
    assert [len(b.activations) for b in data.val_dataloader()] == [3, 3, 3, 1]
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        assert torch.equal(torch.cat([b.activations for b in loader]), data.split("test").activations)


def test_seed_decides(save: Any) -> None:
    path = save(X)
    first, second, other = (TensorDataModule(path, seed=seed, batch_size=8) for seed in (3, 3, 4))
    assert torch.equal(contents(first), contents(second))
    assert not torch.equal(contents(first), contents(other))
    torch.randn(100)
    streams = [torch.cat([b.activations for b in data.train_dataloader()]) for data in (first, second)]
    assert torch.equal(*streams)


@pytest.mark.parametrize(("stored", "used"), [("bfloat16", "bfloat16"), ("float16", "float16"), ("float64", "float32")])
def test_precision(save: Any, stored: str, used: str) -> None:
    x = X.to(getattr(torch, stored))
    data = TensorDataModule(save(x))
    assert data.split("train").activations.dtype == getattr(torch, used)
    assert sorted(contents(data).tolist()) == sorted(x.to(getattr(torch, used)).tolist())


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int8])
def test_labels_stay_with_their_samples(save: Any, dtype: torch.dtype) -> None:
    data = TensorDataModule(save(X), save(LABELS.to(dtype), "y.npy"))
    assert data.concept_names == ["C0", "C1", "C2"]
    label_of = {tuple(x): y for x, y in zip(X.tolist(), LABELS.tolist(), strict=True)}
    for split in SPLITS:
        x, concepts, *_ = data.split(split)[torch.arange(len(data.split(split)))]
        assert concepts.dtype == torch.int64
        assert [label_of[tuple(row)] for row in x.tolist()] == concepts.tolist()


def test_overlapping_labels(save: Any) -> None:
    data = TensorDataModule(save({"a": X, "b": X + 1}), save(OVERLAPPING, "y.pt"), key="a")
    assert data.n_concepts == 3
    row_of = {tuple(x): y for x, y in zip(X.tolist(), OVERLAPPING.tolist(), strict=True)}
    train = data.split("train")
    assert train.concepts.dtype == torch.bool
    assert [row_of[tuple(x)] for x in train.activations.tolist()] == train.concepts.tolist()


def test_keys_and_names(save: Any) -> None:
    path = save({"x": X, "other": X[:3].clone(), "y": LABELS}, "x.safetensors")
    names = ["noun", "verb", "adverb", "never seen"]
    data = TensorDataModule(path, path, key="x", labels_key="y", concept_names=names)
    assert data.concept_names == names
    assert data.n_concepts == 4
    assert TensorDataModule(save(X), concept_names=names).concept_names == names


def with_bad(value: float, row: int = 17, feature: int = 2) -> torch.Tensor:
    x = X.clone()
    x[row, feature] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X[0], r"two dimensions \(n, d_in\), but those in '.*x.pt' have 1"),
        (X[None], r"two dimensions \(n, d_in\), but those in '.*x.pt' have 3"),
        (torch.tensor(1.0), r"two dimensions \(n, d_in\), but those in '.*x.pt' have 0"),
        (X.long(), "must be floating-point numbers, but those in '.*x.pt' are torch.int64"),
        (X.to(torch.complex64), "must be floating-point numbers, but those in '.*x.pt' are torch.complex64"),
        (X[:1], "at least two samples, but those in '.*x.pt' hold 1"),
        (X[:0], "at least two samples, but those in '.*x.pt' hold 0"),
        (with_bad(math.nan), r"must be finite, but '.*x.pt' holds nan at row 17, feature 2 \(1 such"),
        (with_bad(math.inf), "must be finite, but '.*x.pt' holds inf at row 17, feature 2"),
        (with_bad(-math.inf).bfloat16(), "must be finite, but '.*x.pt' holds -inf at row 17, feature 2"),
        (with_bad(math.nan).double(), "must be finite, but '.*x.pt' holds nan at row 17, feature 2"),
        (X[:9], "every split must hold a sample, but 9 samples give 9 for training, 0 for validation and 0 for test"),
    ],
)
def test_bad_activations(save: Any, x: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorDataModule(save(x.clone()))


@pytest.mark.parametrize(
    ("labels", "names", "message"),
    [
        (LABELS[:-1], None, "labels must be as many as activations, 50, but '.*y.pt' holds 49"),
        (torch.tensor(1), None, "labels must be"),
        (LABELS.float(), None, r"labels must be integers \(n,\) or bool .*y.pt' have shape \(50,\) and type torch.fl"),
        (LABELS == 0, None, r"labels must be integers \(n,\) or bool .*shape \(50,\) and type torch.bool"),
        (OVERLAPPING.long(), None, r"labels must be integers \(n,\) or bool .*shape \(50, 3\) and type torch.int64"),
        (OVERLAPPING[:, None], None, r"labels must be integers \(n,\) or bool .*shape \(50, 1, 3\)"),
        (LABELS - 1, None, "labels must be at least -1 .*, but '.*y.pt' holds -2 at row [0-9]+"),
        (LABELS, ["a", "b"], "below the number of concepts, 2 .*, but '.*y.pt' holds 2 at row [0-9]+"),
        (OVERLAPPING, ["a", "b"], r"must be as many as the concepts in '.*y.pt', 3, but are 2"),
        (OVERLAPPING, [*"abcd"], r"must be as many as the concepts in '.*y.pt', 3, but are 4"),
        (LABELS, ["a", "b", "a"], "concept_names must be distinct, but 'a' is there twice"),
    ],
)
def test_bad_labels(save: Any, labels: torch.Tensor, names: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorDataModule(save(X), save(labels.clone(), "y.pt"), concept_names=names)


def with_label(row: int, value: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    labels = LABELS.clone().to(dtype)
    labels[row] = value
    return labels


@pytest.mark.parametrize("value", [50, 5000, 2**40, 2**62])
def test_one_label_does_not_decide_how_many_concepts_there_are(save: Any, value: int) -> None:
    """A stray label would cost time and memory that grow with it."""
    message = rf"below the number of samples, 50, but '.*y.pt' holds {value} at row 7; .* n_concepts = {value + 1}"
    with pytest.raises(ValueError, match=message):
        TensorDataModule(save(X), save(with_label(7, value), "y.pt"))
    with pytest.raises(ValueError, match=rf"below the number of concepts, 4 .*, but '.*y.pt' holds {value} at row 7"):
        TensorDataModule(save(X), save(with_label(7, value), "y.pt"), n_concepts=4)


@pytest.mark.parametrize("bit", range(3, 32))
def test_a_flipped_bit_of_a_label_asks_for_no_memory(save: Any, bit: int) -> None:
    flipped = int(np.array(1, np.uint32) ^ np.array(1 << bit, np.uint32).astype(np.uint32))
    labels = with_label(3, flipped - (1 << 32 if bit == 31 else 0), torch.int32)
    if flipped < len(X):
        assert TensorDataModule(save(X), save(labels, "y.pt")).n_concepts == flipped + 1
    else:
        with pytest.raises(ValueError, match="at row 3"):
            TensorDataModule(save(X), save(labels, "y.pt"))


def test_many_concepts_are_accepted_where_they_are_meant(save: Any) -> None:
    data = TensorDataModule(save(X), save(with_label(7, 99), "y.pt"), n_concepts=200)
    assert data.n_concepts == 200
    assert data.concept_names[::100] == ["C0", "C100"]
    many = torch.zeros(50, 60, dtype=torch.bool)
    with pytest.raises(
        ValueError, match=r"at most as many concepts as samples, 50, but '.*y.pt' holds 60; .* n_concepts = 60"
    ):
        TensorDataModule(save(X), save(many, "y.pt"))
    assert TensorDataModule(save(X), save(many, "y.pt"), n_concepts=60).n_concepts == 60


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_concepts": 0}, "n_concepts must be at least 1, but is 0"),
        ({"n_concepts": 3, "concept_names": ["a", "b"]}, "concept_names must be n_concepts = 3 names, but are 2"),
        ({"val_fraction": 0.0}, "val_fraction must lie between 0 and 1, but is 0.0"),
        ({"val_fraction": 1.0}, "val_fraction must lie between 0 and 1, but is 1.0"),
        ({"test_fraction": -0.1}, "test_fraction must lie between 0 and 1, but is -0.1"),
        ({"test_fraction": math.nan}, "test_fraction must lie between 0 and 1, but is nan"),
        ({"val_fraction": 0.5, "test_fraction": 0.5}, "50 samples give 0 for training, 25 for validation and 25"),
        ({"val_fraction": 0.01}, "50 samples give 45 for training, 0 for validation and 5 for test"),
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"eval_batch_size": -2}, "eval_batch_size must be at least 1, but is -2"),
    ],
)
def test_bad_arguments(save: Any, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TensorDataModule(save(X), **changes)


def test_a_training_split_smaller_than_a_batch(save: Any) -> None:
    data = TensorDataModule(save(X), batch_size=41)
    with pytest.raises(ValueError, match=r"batch_size \* processes = 41 samples, but holds 40"):
        data.train_dataloader()
