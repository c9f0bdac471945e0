"""Write codes to a file."""

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
from torch import Tensor

from sae_lightning.data.ranks import data_ranks, is_first_reader
from sae_lightning.files import replacing
from sae_lightning.loggers import MEMBERS, run_folder
from sae_lightning.modules.module import Predictions, SAEModule


def load_codes(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read codes that `predict` wrote.

    Args:
        path: A `codes.safetensors` file.

    Returns:
        Codes as a sparse CSR tensor `(n, d_sae)` (`.to_dense()` gives the ordinary one), and the samples' concepts.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no safetensors file, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        parts = load_file(path)
    except SafetensorError as error:
        raise ValueError(f"codes {str(path)!r} cannot be read: {error}") from error
    size = tuple(parts["size"].tolist())
    with warnings.catch_warnings():  # torch calls its CSR tensors a beta
        warnings.filterwarnings("ignore", message=".*Sparse CSR tensor support is in beta.*")
        codes = torch.sparse_csr_tensor(
            parts["crow_indices"], parts["col_indices"], parts["values"], size, check_invariants=True
        )
    return codes, parts["concepts"]


class _Rows(NamedTuple):
    """The nonzero codes of a batch, row by row."""

    values: Tensor
    columns: Tensor
    counts: Tensor


class CodesWriter(pl.Callback):
    """Writes the codes of `predict` to `codes.safetensors` in the run's folder, as sparse rows, in stored order.

    With several SAEs there is a folder `members/<name>` for each, and with several processes a file
    `codes-<rank>.safetensors` for each, which holds every `world_size`-th sample of each batch.

    Args:
        output_dir: Where to write; None takes the run's folder.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        self.output_dir = output_dir
        self._rows: dict[str, list[_Rows]] = {}
        self._d_sae: dict[str, int] = {}
        self._concepts: list[Tensor] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start anew."""
        assert isinstance(pl_module, SAEModule)
        self._rows = {name: [] for name in pl_module.saes()}
        self._d_sae = {name: sae.d_sae for name, sae in pl_module.saes().items()}
        self._concepts = []

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Predictions,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the nonzero codes."""
        for name, output in outputs.codes.items():
            codes = output.cpu()
            nonzero = codes != 0
            self._rows[name].append(_Rows(codes[nonzero], nonzero.nonzero()[:, 1], nonzero.sum(-1)))
        self._concepts.append(outputs.concepts.cpu())

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files."""
        from safetensors.torch import save

        root = Path(self.output_dir or run_folder(trainer) or trainer.default_root_dir)
        rank, size = data_ranks(trainer)
        if not is_first_reader(trainer):
            return
        file = "codes.safetensors" if size == 1 else f"codes-{rank}.safetensors"
        for name, batches in self._rows.items():
            values, columns, counts = map(torch.cat, zip(*batches, strict=True))
            tensors = {
                "values": values,
                "col_indices": columns,
                "crow_indices": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
                "size": torch.tensor([len(counts), self._d_sae[name]]),
                "concepts": torch.cat(self._concepts),
            }
            path = root / MEMBERS / name / file if name else root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path) as opened:
                opened.write(save(tensors))
        self._rows, self._concepts = {}, []
