"""Sources of activations as LightningDataModules, and the samplers behind them."""

from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.cached import CachedDataModule
from sae_lightning.data.datamodule import ActivationDataModule, SeededDataModule
from sae_lightning.data.formal_language import FormalLanguageDataModule
from sae_lightning.data.grammar import Grammar
from sae_lightning.data.heterogeneity import HeterogeneityDataModule
from sae_lightning.data.images import ImageDataModule
from sae_lightning.data.live import LiveDataModule
from sae_lightning.data.sentences import SentenceDataModule
from sae_lightning.data.separability import SeparabilityDataModule
from sae_lightning.data.streaming import StreamingDataModule
from sae_lightning.data.tensor import TensorDataModule, read_tensor
from sae_lightning.data.vision import read_vision_model

__all__ = [
    "ActivationBatch",
    "ActivationDataModule",
    "CachedDataModule",
    "FormalLanguageDataModule",
    "Grammar",
    "HeterogeneityDataModule",
    "ImageDataModule",
    "LiveDataModule",
    "SeededDataModule",
    "SentenceDataModule",
    "SeparabilityDataModule",
    "StreamingDataModule",
    "TensorDataModule",
    "read_tensor",
    "read_vision_model",
]
