"""Small data, SAEs and trainers for the tests of the Lightning glue."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from sae_lightning.data import ActivationDataModule
from sae_lightning.data.loading import ActivationDataset
from sae_lightning.data.synthetic.gaussian import sample_gaussian_concepts
from sae_lightning.modules import BaseSAE, ComposedSAE, JumpReLUSAE, ReLUSAE, SAEModule, SpaDE, TopKSAE
from sae_lightning.nn import L1, Affine, DistanceWeightedL1, KSparse, Orthant, Simplex, SquaredDistance

D_IN, D_SAE, BATCH = 6, 24, 32

# every architecture, with optimizers, schedules and initial values that all differ
PRESETS: dict[str, Callable[..., BaseSAE]] = {
    "spade": partial(
        SpaDE,
        d_sae=D_SAE,
        l0_init=5,
        n_init_samples=200,
        optimizer=partial(Adam, lr=1e-2),
        lr_scheduler=partial(CosineAnnealingLR, T_max=60),
    ),
    "relu": partial(ReLUSAE, d_sae=D_SAE, init="data", optimizer=partial(SGD, lr=1e-3, momentum=0.9)),
    "jumprelu": partial(JumpReLUSAE, d_sae=D_SAE, threshold_init=0.1, bandwidth=0.2, init="normal"),
    "topk": partial(
        TopKSAE,
        d_sae=D_SAE,
        k=2,
        dead_after=3,
        gamma=0.1,
        optimizer=partial(Adam, lr=1e-2, amsgrad=True),
        lr_scheduler=partial(StepLR, step_size=10, gamma=0.8),
    ),
    "composed": partial(
        ComposedSAE,
        d_sae=D_SAE,
        encoder=partial(Affine, bias=False),
        projection=partial(KSparse, k=4),
        regularizer=L1,
        subtract_decoder_bias=True,
        optimizer=partial(Adam, lr=3e-3, weight_decay=1e-3),
    ),
    "composed-distance": partial(
        ComposedSAE,
        d_sae=D_SAE,
        encoder=partial(SquaredDistance, lambda_init=0.3),
        projection=Simplex,
        regularizer=DistanceWeightedL1,
        init="data",
        l0_init=8,
    ),
    "composed-ball": partial(
        ComposedSAE,
        d_sae=D_SAE,
        encoder=partial(SquaredDistance, offset_init=0.125),
        projection=Orthant,
        regularizer=L1,
        init="data",
        l0_init=12,
        gamma=1e-4,
    ),
}


class Clusters(ActivationDataModule):
    """Five Gaussian concepts, far from standardised."""

    def __init__(self, steps_per_epoch: int = 25, d_in: int = D_IN, batch_size: int = BATCH, seed: int = 0) -> None:
        super().__init__(d_in, [f"C{i}" for i in range(5)], batch_size, 100, seed)
        self.n = -(-steps_per_epoch * batch_size // 5)

    def make_split(self, split: Any) -> ActivationDataset:
        generator = torch.Generator().manual_seed(self.seed)
        centres = 4 * torch.randn(5, self.d_in, generator=generator) + 10
        generator.manual_seed(1000 * self.seed + ("train", "val", "test").index(split))
        return ActivationDataset(*sample_gaussian_concepts(centres, torch.ones_like(centres), self.n, generator))


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


def make_trainer(max_steps: int, **options: Any) -> pl.Trainer:
    """A Trainer without logger, callbacks and files."""
    options = {"accelerator": "cpu", "limit_val_batches": 0, "num_sanity_val_steps": 0, **options}
    return pl.Trainer(
        max_steps=max_steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def make(name: str, seed: int = 1, d_in: int = D_IN, **changes: Any) -> BaseSAE:
    """A preset, whose random values come from `seed`."""
    pl.seed_everything(seed, verbose=False)
    return PRESETS[name](d_in, **changes)


def fit(module: SAEModule, max_steps: int, data: ActivationDataModule | None = None, **options: Any) -> pl.Trainer:
    """Train on Clusters (or other data)."""
    ckpt_path = options.pop("ckpt_path", None)
    trainer = make_trainer(max_steps, **options)
    trainer.fit(module, datamodule=data or Clusters(), ckpt_path=ckpt_path, weights_only=True)
    return trainer


def stream(data: ActivationDataModule, n: int) -> Tensor:
    """The first samples that training sees."""
    return torch.cat([batch.activations for batch in data.train_dataloader()])[:n]


def assert_same(actual: Any, expected: Any, where: str = "") -> None:
    """Compare nested dicts, lists and tensors bit by bit."""
    assert type(actual) is type(expected), where
    if isinstance(expected, Tensor):
        assert torch.equal(actual, expected), f"{where}: {actual} != {expected}"
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), where
        for key in expected:
            assert_same(actual[key], expected[key], f"{where}.{key}")
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), where
        for i, pair in enumerate(zip(actual, expected, strict=True)):
            assert_same(*pair, f"{where}[{i}]")
    elif not callable(expected):
        assert actual == expected or (actual != actual and expected != expected), where  # noqa: PLR0124  (NaN)


def is_plain(value: Any) -> bool:
    """Whether a value consists of what any checkpoint reader knows."""
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return type(value) in (int, float, str, bool, type(None)) and not isinstance(value, np.generic)
