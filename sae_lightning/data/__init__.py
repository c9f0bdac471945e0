"""LightningDataModules that yield activations, and the samplers that they use."""

from sae_lightning.data.activations.cached import CachedDataModule
from sae_lightning.data.activations.live import LiveDataModule
from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.datamodule import ActivationDataModule, SeededDataModule
from sae_lightning.data.formal_language.activations import FormalLanguageDataModule
from sae_lightning.data.formal_language.grammar import Grammar
from sae_lightning.data.formal_language.sentences import SentenceDataModule
from sae_lightning.data.images.datamodule import ImageDataModule
from sae_lightning.data.images.vision import read_vision_model
from sae_lightning.data.streaming import StreamingDataModule
from sae_lightning.data.synthetic.heterogeneity import HeterogeneityDataModule
from sae_lightning.data.synthetic.separability import SeparabilityDataModule
from sae_lightning.data.tensor import TensorDataModule, read_tensor

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
