"""Small SAEs of every architecture as Lightning modules, and a projection whose codes have signs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Adam
from torch.optim.lr_scheduler import CosineAnnealingLR, StepLR

from sae_lightning.modules import BaseSAE, ComposedSAE, JumpReLUSAE, ReLUSAE, SpaDE, TopKSAE
from sae_lightning.nn import L1, Affine, DistanceWeightedL1, KSparse, Orthant, Projection, Simplex, SquaredDistance
from tests.helpers.data import D_IN

D_SAE = 24


class AbsTopK(Projection):
    """The k codes of largest magnitude, with their signs."""

    def __init__(self, d_sae: int, k: int) -> None:
        super().__init__(d_sae)
        self.k = k

    def forward(self, pre_codes: Tensor) -> Tensor:
        chosen = pre_codes.abs().topk(self.k, dim=-1).indices
        return torch.zeros_like(pre_codes).scatter(-1, chosen, pre_codes.gather(-1, chosen))


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


def make(name: str, seed: int = 1, d_in: int = D_IN, **changes: Any) -> BaseSAE:
    """A preset, whose random values come from `seed`."""
    pl.seed_everything(seed, verbose=False)
    return PRESETS[name](d_in, **changes)


def is_plain(value: Any) -> bool:
    """Whether a value consists of what any checkpoint reader knows."""
    if isinstance(value, dict):
        return all(type(key) is str and is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    return type(value) in (int, float, str, bool, type(None)) and not isinstance(value, np.generic)
