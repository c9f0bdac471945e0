"""Small data of Gaussian concepts, data loaders of given batches, and data modules on one of several ranks."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from sae_lightning.data import ActivationDataModule
from sae_lightning.data.loading import ActivationDataset
from sae_lightning.data.synthetic.gaussian import sample_gaussian_concepts

D_IN, BATCH = 6, 32


class Clusters(ActivationDataModule):
    """Five Gaussian concepts, far from standardized."""

    def __init__(self, steps_per_epoch: int = 25, d_in: int = D_IN, batch_size: int = BATCH, seed: int = 0) -> None:
        super().__init__(d_in, [f"C{i}" for i in range(5)], batch_size, 100, seed)
        self.n = -(-steps_per_epoch * batch_size // 5)

    def make_split(self, split: Any) -> ActivationDataset:
        generator = torch.Generator().manual_seed(self.seed)
        centers = 4 * torch.randn(5, self.d_in, generator=generator) + 10
        generator.manual_seed(1000 * self.seed + ("train", "val", "test").index(split))
        return ActivationDataset(*sample_gaussian_concepts(centers, torch.ones_like(centers), self.n, generator))


class Batches:
    """A data loader that yields what it is given. (A list would be taken for several loaders.)"""

    def __init__(self, batches: Sequence[Any], sized: bool = True) -> None:
        self.batches = batches
        if sized:
            self.__class__ = _SizedBatches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


class _SizedBatches(Batches):
    def __len__(self) -> int:
        return len(self.batches)


def stream(data: ActivationDataModule, n: int) -> Tensor:
    """The first samples that training sees."""
    return torch.cat([batch.activations for batch in data.train_dataloader()])[:n]


class Ranked:
    """As much of a Trainer as a data module asks for."""

    overfit_batches = 0
    strategy = None

    def __init__(self, rank: int, world_size: int) -> None:
        self.global_rank = rank
        self.world_size = world_size


def ranked(source: Any, rank: int, world_size: int) -> Any:
    """A data module as it is on one of several processes."""
    source.trainer = Ranked(rank, world_size)
    return source
