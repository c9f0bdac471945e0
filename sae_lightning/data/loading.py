"""In-memory activations, read in whole batches that are disjoint across ranks."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.seeding import seeded_generator

_ORDER = 1000  # keeps the random streams of orders apart from those of the data


class ActivationDataset(Dataset[ActivationBatch]):
    """Activations with their concepts; an index is a tensor of positions, an item is a batch.

    Args:
        activations: `(n, d_in)`.
        concepts: int64 `(n,)` or bool `(n, n_concepts)`.
    """

    def __init__(self, activations: Tensor, concepts: Tensor) -> None:
        self.activations = activations
        self.concepts = concepts

    def __len__(self) -> int:
        return len(self.activations)

    def __getitem__(self, index: Tensor) -> ActivationBatch:
        return ActivationBatch(self.activations[index], self.concepts[index])


class BatchIndices(DistributedSampler[Tensor]):
    """Yields the positions of one batch at a time; the ranks' batches are disjoint and never padded.

    All ranks walk through one order and take every `world_size`-th position of each global batch, so that the
    ranks' batches together are the batch that one process of `world_size * batch_size` would see. (It derives from
    DistributedSampler so that Lightning leaves it in place.)

    Args:
        n: Number of samples.
        batch_size: Samples per batch and rank, at least 1.
        rank: This process.
        world_size: Number of processes.
        shuffle_seed: Seed of the order, drawn anew every epoch; None keeps the stored order.
        drop_last: Whether to leave out what does not fill a batch on every rank.

    Attributes:
        position: Batches read so far, over all epochs; it says which batch comes next.
        resumed: Whether the position came from a checkpoint, so that Lightning's count of epochs is ignored.
    """

    def __init__(
        self, n: int, batch_size: int, rank: int, world_size: int, shuffle_seed: int | None, drop_last: bool
    ) -> None:
        self.n = n
        self.per_batch = batch_size * world_size
        self.rank = rank
        self.world_size = world_size
        self.shuffle_seed = shuffle_seed
        self.drop_last = drop_last
        self.position = 0
        self.resumed = False

    def __len__(self) -> int:
        return self.n // self.per_batch if self.drop_last else -(-self.n // self.per_batch)

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; a resumed run goes on from where it is instead."""
        if not self.resumed:
            self.position = epoch * len(self)

    def __iter__(self) -> Iterator[Tensor]:
        if self.shuffle_seed is None:  # stored order, always from its start
            self.position = 0
        order, order_epoch = torch.arange(self.n), None
        for _ in range(len(self)):
            epoch, i = divmod(self.position, len(self))
            if self.shuffle_seed is not None and epoch != order_epoch:
                order = torch.randperm(self.n, generator=seeded_generator(self.shuffle_seed, _ORDER, epoch))
                order_epoch = epoch
            self.position += 1
            yield order[i * self.per_batch : (i + 1) * self.per_batch][self.rank :: self.world_size]


class ActivationLoader(DataLoader[ActivationBatch]):
    """A DataLoader of whole batches whose position goes into checkpoints (Lightning asks for `state_dict`).

    A resumed run so goes on with the next batch. (The constructor stays DataLoader's, since Lightning calls it anew.)
    """

    @classmethod
    def of(cls, dataset: ActivationDataset, indices: BatchIndices, pin_memory: bool) -> "ActivationLoader":
        """Read the batches that `indices` names, in the process itself: indexing memory needs no workers."""
        return cls(dataset, sampler=indices, batch_size=None, pin_memory=pin_memory)

    @property
    def indices(self) -> BatchIndices:
        """What decides on the batches."""
        assert isinstance(self.sampler, BatchIndices)
        return self.sampler

    def state_dict(self) -> dict[str, int]:
        """Where reading stands."""
        return {"position": self.indices.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where reading stood."""
        self.indices.position = state["position"]
        self.indices.resumed = True
