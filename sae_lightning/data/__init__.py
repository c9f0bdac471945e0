"""Sources of activations as LightningDataModules, and the samplers behind them."""

from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.datamodule import ActivationDataModule
from sae_lightning.data.heterogeneity import HeterogeneityDataModule
from sae_lightning.data.separability import SeparabilityDataModule
from sae_lightning.data.streaming import StreamingDataModule
from sae_lightning.data.tensor import TensorDataModule, read_tensor

__all__ = [
    "ActivationBatch",
    "ActivationDataModule",
    "HeterogeneityDataModule",
    "SeparabilityDataModule",
    "StreamingDataModule",
    "TensorDataModule",
    "read_tensor",
]
