"""Write codes to a file."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from sae_lightning.loggers import MEMBERS, run_folder
from sae_lightning.modules.module import Predictions, SAEModule


def load_codes(path: str | Path) -> tuple[Tensor, Tensor]:
    """Read codes that `predict` wrote.

    Args:
        path: A `codes.safetensors` file.

    Returns:
        Codes as a sparse CSR tensor `(n, d_sae)` (`.to_dense()` gives the ordinary one), and the samples' concepts.
    """
    from safetensors.torch import load_file

    parts = load_file(path)
    size = tuple(parts["size"].tolist())
    codes = torch.sparse_csr_tensor(parts["crow_indices"], parts["col_indices"], parts["values"], size)
    return codes, parts["concepts"]


class CodesWriter(pl.Callback):
    """Writes the codes of `predict` to `codes.safetensors` in the run's folder, as sparse rows, in stored order.

    With several SAEs there is a folder `members/<name>` for each, and with several processes a file
    `codes-<rank>.safetensors` for each, which holds every `world_size`-th sample of each batch.

    Args:
        output_dir: Where to write; None takes the run's folder.
    """

    def __init__(self, output_dir: str | None = None) -> None:
        self.output_dir = output_dir
        self._rows: dict[str, list[Tensor]] = {}
        self._concepts: list[Tensor] = []

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start anew."""
        assert isinstance(pl_module, SAEModule)
        self._rows = {name: [] for name in pl_module.saes()}
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
        for name, codes in outputs.codes.items():
            self._rows[name].append(codes.flatten(0, -2).cpu().to_sparse_csr())
        self._concepts.append(outputs.concepts.cpu())

    def on_predict_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the files."""
        from safetensors.torch import save_file

        root = Path(self.output_dir or run_folder(trainer) or trainer.default_root_dir)
        file = "codes.safetensors" if trainer.world_size == 1 else f"codes-{trainer.global_rank}.safetensors"
        for name, rows in self._rows.items():
            counts = torch.cat([part.crow_indices().diff() for part in rows])
            tensors = {
                "values": torch.cat([part.values() for part in rows]),
                "col_indices": torch.cat([part.col_indices() for part in rows]),
                "crow_indices": torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
                "size": torch.tensor([len(counts), rows[0].shape[1]]),
                "concepts": torch.cat(self._concepts),
            }
            path = root / MEMBERS / name / file if name else root / file
            path.parent.mkdir(parents=True, exist_ok=True)
            save_file(tensors, path)
        self._rows, self._concepts = {}, []
