"""Write codes to a file."""

import warnings
from pathlib import Path
from typing import NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.ranks import data_ranks, is_first_reader
from sae_lightning.modules.module import Predictions, SAEModule
from sae_lightning.nn.firing import fires
from sae_lightning.run.files import replacing
from sae_lightning.run.loggers import MEMBERS, run_folder
from sae_lightning.run.seal import KEY, UNSEALED, check_seal, write_sealed

_INTEGERS = ("col_indices", "crow_indices", "size")
_PARTS = (*_INTEGERS, "values", "concepts")
_HEADER = 8  # bytes that say how long safetensors' JSON header is


def load_codes(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read codes that `predict` wrote.

    Args:
        path: A `codes.safetensors` file.

    Returns:
        Codes as a sparse CSR tensor `(n, d_sae)` (`.to_dense()` gives the ordinary one), and the samples' concepts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no file of codes, or one bit of it is not what was written.
    """
    from safetensors.torch import load_file

    path = Path(path)
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(_HEADER), "little")
        check_seal(path, within=_HEADER + min(length, path.stat().st_size))
        parts = load_file(path)
        _check_parts(parts)
        with warnings.catch_warnings():  # torch calls its CSR tensors a beta
            warnings.filterwarnings("ignore", message=".*Sparse CSR tensor support is in beta.*")
            codes = torch.sparse_csr_tensor(
                parts["crow_indices"],
                parts["col_indices"],
                parts["values"],
                tuple(parts["size"].tolist()),
                check_invariants=True,
            )
    except FileNotFoundError:
        raise
    except Exception as error:  # each reader meets damage with errors of its own
        raise ValueError(f"codes {str(path)!r} cannot be read: {error}") from error
    return codes, parts["concepts"]


def _check_parts(parts: dict[str, Tensor]) -> None:
    """Raise a ValueError unless a file holds what `CodesWriter` writes."""
    if parts.keys() != set(_PARTS):
        raise ValueError(f"it must hold {', '.join(_PARTS)}, but holds {', '.join(sorted(parts)) or 'nothing'}")
    for name in _PARTS[:-1]:
        if parts[name].ndim != 1:
            raise ValueError(f"{name!r} must have one dimension, but has {parts[name].ndim}")
    for name in _INTEGERS:
        if parts[name].dtype != torch.int64:
            raise ValueError(f"{name!r} must be of type torch.int64, but is of type {parts[name].dtype}")
    values, size = parts["values"], parts["size"]
    if not values.is_floating_point() or not bool(values.isfinite().all()):
        raise ValueError("'values' must be finite floating-point numbers")
    if len(size) != 2 or bool((size < 0).any()) or len(parts["concepts"]) != size[0]:
        raise ValueError(
            f"'size' must be (n, d_sae) with a concept for each of n samples, but is {tuple(size.tolist())}"
        )


class _Rows(NamedTuple):
    """The codes of a batch that fire, row by row."""

    values: Tensor
    columns: Tensor
    counts: Tensor

    def in_order(self, order: Tensor) -> "_Rows":
        """The rows in another order, a permutation of their numbers."""
        places = order.argsort()[torch.repeat_interleave(torch.arange(len(order)), self.counts)]
        entries = places.argsort(stable=True)
        return _Rows(self.values[entries], self.columns[entries], self.counts[order])


def _stored_order(positions: list[Tensor | None]) -> Tensor | None:
    """The order of rows in which their positions ascend; None if they do already, or are not known."""
    known = [part for part in positions if part is not None]
    if not known or len(known) < len(positions):
        return None
    joined = torch.cat(known)
    return None if bool((joined.diff() >= 0).all()) else joined.argsort(stable=True)


class CodesWriter(RunCallback):
    """Writes the codes of `predict` to `codes.safetensors` in the run's folder, as sparse rows.

    Rows are in the stored order of the samples, whatever the order of the batches; in that of the batches where these
    do not say which samples they hold.

    Only codes that fire (|code| > 1e-6) are written, so that their number is the L0 that is told elsewhere.

    With several SAEs there is a folder `members/<name>` for each, and with several processes a file
    `codes-<rank>.safetensors` for each, which holds every `world_size`-th sample of each batch.

    Args:
        output_dir: Where to write; None takes the run's folder.
    """

    key = "codes"
    serves = SAEModule

    def __init__(self, output_dir: str | None = None) -> None:
        self.output_dir = output_dir
        self._rows: dict[str, list[_Rows]] = {}
        self._d_sae: dict[str, int] = {}
        self._concepts: list[Tensor] = []
        self._positions: list[Tensor | None] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget the codes of an earlier prediction."""
        assert isinstance(pl_module, SAEModule)
        self._rows = {name: [] for name in pl_module.saes()}
        self._d_sae = {name: sae.d_sae for name, sae in pl_module.saes().items()}
        self._concepts = []
        self._positions = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Predictions,
        batch: ActivationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the codes that fire."""
        for name, output in outputs.codes.items():
            codes = output.cpu()
            nonzero = fires(codes)
            self._rows[name].append(_Rows(codes[nonzero], nonzero.nonzero()[:, 1], nonzero.sum(-1)))
        self._concepts.append(outputs.concepts.cpu())
        self._positions.append(None if batch.positions is None else batch.positions.cpu())

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files."""
        from safetensors.torch import save

        root = Path(self.output_dir or run_folder(trainer) or trainer.default_root_dir)
        rank, size = data_ranks(trainer)
        if not is_first_reader(trainer):
            return
        name_of_file = "codes.safetensors" if size == 1 else f"codes-{rank}.safetensors"
        order = _stored_order(self._positions)
        concepts = torch.cat(self._concepts)
        for name, batches in self._rows.items():
            rows = _Rows(*map(torch.cat, zip(*batches, strict=True)))
            values, columns, counts = rows if order is None else rows.in_order(order)
            tensors = {
                "values": values,
                "col_indices": columns,
                "crow_indices": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
                "size": torch.tensor([len(counts), self._d_sae[name]]),
                "concepts": concepts if order is None else concepts[order],
            }
            path = root / MEMBERS / name / name_of_file if name else root / name_of_file
            path.parent.mkdir(parents=True, exist_ok=True)
            content = save(tensors, {KEY: UNSEALED})
            with replacing(path) as file:
                write_sealed(file, content, within=_HEADER + int.from_bytes(content[:_HEADER], "little"))
            print(f"Codes:       {path} ({len(counts):,} samples; read with sae_lightning.load_codes)")
        self._rows, self._concepts, self._positions = {}, [], []
