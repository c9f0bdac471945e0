"""Activations from tensor files."""

import os
from pathlib import Path

import torch
from torch import Tensor

from sae_lightning.data.datamodule import ActivationDataModule, Split
from sae_lightning.data.loading import ActivationDataset
from sae_lightning.data.seeding import seeded_generator


def read_tensor(path: str | os.PathLike[str], key: str | None = None) -> Tensor:
    """Read one tensor from a .npy, .safetensors or .pt file without executing code from it.

    Args:
        path: The file.
        key: Name of the tensor in a file with several; None if there is just one.

    Returns:
        The tensor, on the CPU.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the format is unknown, the file is damaged, or `key` does not name a tensor in it.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sae_lightning.data import read_tensor
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"x": torch.ones(2)}, Path(folder, "x.pt"))
        ...     read_tensor(Path(folder, "x.pt"), key="x")
        tensor([1., 1.])
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
    tensors: object
    try:
        if path.suffix == ".npy":
            import numpy as np

            tensors = torch.from_numpy(np.load(path, allow_pickle=False))
        elif path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        elif path.suffix in (".pt", ".pth"):
            tensors = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise ValueError("its ending must be .npy, .safetensors or .pt")
    except Exception as error:
        raise ValueError(f"{os.fspath(path)!r} cannot be read as a tensor: {error}") from error
    if isinstance(tensors, dict):
        names = sorted(n for n, value in tensors.items() if isinstance(n, str) and isinstance(value, Tensor))
        if key is None and len(names) == 1:
            key = names[0]
        if key not in names:
            raise ValueError(f"key must name one of the tensors {names} in {os.fspath(path)!r}, but is {key!r}")
        tensors = tensors[key]
    elif key is not None:
        raise ValueError(f"key must be None for {os.fspath(path)!r}, which holds one tensor, but is {key!r}")
    if not isinstance(tensors, Tensor):
        raise ValueError(f"{os.fspath(path)!r} must hold a tensor, but holds a {type(tensors).__name__}")
    return tensors.detach()


class TensorDataModule(ActivationDataModule):
    """Activations from a .npy, .safetensors or .pt file, with optional labels and targets.

    Samples are split at random (by `seed`); training batches are shuffled every epoch.

    Args:
        path: File with the activations, `(n, d_in)`, of a floating-point type.
        labels: File with the labels: integers `(n,)` with -1 for unlabeled, or bool `(n, n_concepts)`.
        key: Name of the activations in a file with several tensors.
        labels_key: Name of the labels in a file with several tensors.
        targets: File with what a Transcoder reconstructs instead of the activations, `(n, d_out)`.
        targets_key: Name of the targets in a file with several tensors.
        concept_names: Names of the concepts in the order of their labels; None numbers them.
        n_concepts: Number of concepts; None takes the number of `concept_names`, or else the highest label plus 1,
            which must then not exceed the number of samples (time and memory grow with the number of concepts).
        val_fraction: Fraction of the samples for validation, between 0 and 1.
        test_fraction: Fraction of the samples for test and prediction, between 0 and 1.
        batch_size: Training samples per step and process, at least 1.
        eval_batch_size: Samples per step and process in validation, test and prediction, at least 1.
        seed: Seed of split and order; None takes the global seed.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, has the wrong rank, type or length, or holds NaN or infinities; if a label is
            not below the number of concepts; or if a split would be empty.

    Example:
        >>> import torch
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sae_lightning import TensorDataModule
        >>> with TemporaryDirectory() as folder:
        ...     torch.save(torch.arange(20.0).view(10, 2), Path(folder, "x.pt"))
        ...     data = TensorDataModule(str(Path(folder, "x.pt")), batch_size=4, seed=0)
        >>> data.d_in, [len(data.split(split)) for split in ("train", "val", "test")]
        (2, [8, 1, 1])
    """

    def __init__(
        self,
        path: str,
        labels: str | None = None,
        key: str | None = None,
        labels_key: str | None = None,
        targets: str | None = None,
        targets_key: str | None = None,
        concept_names: list[str] | None = None,
        n_concepts: int | None = None,
        val_fraction: float = 0.1,
        test_fraction: float = 0.1,
        batch_size: int = 1024,
        eval_batch_size: int = 4096,
        seed: int | None = None,
    ) -> None:
        for name, file in {"path": path, "labels": labels, "targets": targets}.items():
            if file is not None and not os.path.isfile(file):
                raise FileNotFoundError(f"{name} must be a file, but there is none at {file!r}")
        activations = _checked_activations(read_tensor(path, key), path, "activations")
        target = None
        if targets is not None:
            target = _checked_activations(read_tensor(targets, targets_key), targets, "targets")
            if len(target) != len(activations):
                raise ValueError(f"targets must be as many as activations, {len(activations)}, but are {len(target)}")
            self.d_out = target.shape[1]
        names = list(concept_names or [])
        if n_concepts is not None and n_concepts < 1:
            raise ValueError(f"n_concepts must be at least 1, but is {n_concepts}")
        if n_concepts is not None and names and len(names) != n_concepts:
            raise ValueError(f"concept_names must be n_concepts = {n_concepts} names, but are {len(names)}")
        limit = n_concepts or len(names) or None
        if labels is None:
            concepts = torch.full((len(activations),), -1)
        else:
            concepts = _checked_labels(read_tensor(labels, labels_key), labels, len(activations), limit)
            found = concepts.shape[1] if concepts.ndim == 2 else int(concepts.amax()) + 1
            names = names or [f"C{i}" for i in range(limit or found)]
        super().__init__(activations.shape[1], names, batch_size, eval_batch_size, seed)
        for name, value in {"val_fraction": val_fraction, "test_fraction": test_fraction}.items():
            if not 0 < value < 1:
                raise ValueError(f"{name} must lie between 0 and 1, but is {value}")
        n_val, n_test = int(len(activations) * val_fraction), int(len(activations) * test_fraction)
        n_train = len(activations) - n_val - n_test
        if min(n_train, n_val, n_test) < 1:
            raise ValueError(
                f"every split must hold a sample, but {len(activations)} samples give "
                f"{n_train} for training, {n_val} for validation and {n_test} for test"
            )
        self._data = ActivationDataset(activations, concepts, target)
        self._bounds: dict[Split, tuple[int, int]] = {
            "train": (0, n_train),
            "val": (n_train, n_train + n_val),
            "test": (n_train + n_val, len(activations)),
        }

    def make_split(self, split: Split) -> ActivationDataset:
        """Select the samples of one split."""
        start, end = self._bounds[split]
        chosen = torch.randperm(len(self._data), generator=seeded_generator(self.seed))[start:end]
        samples = self._data[chosen]
        return ActivationDataset(samples.activations, samples.concepts, samples.target)


def _checked_activations(x: Tensor, path: str, name: str) -> Tensor:
    size = "d_in" if name == "activations" else "d_out"
    if x.ndim != 2:
        raise ValueError(f"{name} must have two dimensions (n, {size}), but those in {path!r} have {x.ndim}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be floating-point numbers, but those in {path!r} are {x.dtype}")
    if len(x) < 2:
        raise ValueError(f"{name} must hold at least two samples, but those in {path!r} hold {len(x)}")
    if x.dtype == torch.float64:
        x = x.float()
    if x.shape[1] < 1:
        raise ValueError(f"{name} must have at least one feature, but those in {path!r} have shape {tuple(x.shape)}")
    if bool((x == x[:1]).all()):
        raise ValueError(f"{name} must differ between samples, but all {len(x)} in {path!r} are equal")
    bad = (~x.isfinite()).nonzero()
    if len(bad):
        row, feature = bad[0].tolist()
        raise ValueError(
            f"{name} must be finite, but {path!r} holds {x[row, feature].item()} at row {row}, feature {feature} "
            f"({len(bad)} such values in all)"
        )
    return x


def _checked_labels(labels: Tensor, path: str, n: int, n_concepts: int | None) -> Tensor:
    """Return labels as int64 `(n,)` or bool `(n, n_concepts)`; `n_concepts=None` allows as many concepts as samples."""
    if labels.ndim and len(labels) != n:
        raise ValueError(f"labels must be as many as activations, {n}, but {path!r} holds {len(labels)}")
    if labels.ndim == 2 and labels.dtype == torch.bool:
        if n_concepts is not None and labels.shape[1] != n_concepts:
            raise ValueError(
                f"concept_names (or n_concepts) must be as many as the concepts in {path!r}, {labels.shape[1]}, "
                f"but are {n_concepts}"
            )
        if n_concepts is None and labels.shape[1] > n:
            raise ValueError(
                f"labels must hold at most as many concepts as samples, {n}, but {path!r} holds {labels.shape[1]}; if "
                f"this is intended, set n_concepts = {labels.shape[1]}"
            )
        return labels
    if labels.ndim != 1 or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(
            "labels must be integers (n,) or bool (n, n_concepts), "
            f"but those in {path!r} have shape {tuple(labels.shape)} and type {labels.dtype}"
        )
    labels = labels.long()
    lowest, highest = int(labels.argmin()), int(labels.argmax())
    if labels[lowest] < -1:
        raise ValueError(
            f"labels must be at least -1 (unlabeled), but {path!r} holds {int(labels[lowest])} at row {lowest}"
        )
    value = int(labels[highest])
    if n_concepts is not None and value >= n_concepts:
        raise ValueError(
            f"labels must be below the number of concepts, {n_concepts} (concept_names or n_concepts), but {path!r} "
            f"holds {value} at row {highest}"
        )
    if n_concepts is None and value >= n:
        raise ValueError(
            f"labels must be below the number of samples, {n}, but {path!r} holds {value} at row {highest}; if there "
            f"are that many concepts, set n_concepts = {value + 1}"
        )
    return labels
