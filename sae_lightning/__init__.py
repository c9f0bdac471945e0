"""Train, compare and understand sparse autoencoders on Lightning.

Public names are imported on first use: `import sae_lightning` alone loads neither torch nor lightning.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from sae_lightning.version import __version__

if TYPE_CHECKING:
    from sae_lightning.callbacks import load_codes, load_results
    from sae_lightning.data import (
        ActivationBatch,
        CachedDataModule,
        FormalLanguageDataModule,
        HeterogeneityDataModule,
        ImageDataModule,
        LiveDataModule,
        SentenceDataModule,
        SeparabilityDataModule,
        TensorDataModule,
    )
    from sae_lightning.modules import (
        BaseSAE,
        Comparison,
        ComposedSAE,
        JumpReLUSAE,
        ReLUSAE,
        SpaDE,
        TopKSAE,
        load_module,
        load_sae,
    )
    from sae_lightning.subjects import LanguageModel, VisionModel

_PUBLIC = {
    "sae_lightning.modules": (
        "BaseSAE",
        "Comparison",
        "ComposedSAE",
        "JumpReLUSAE",
        "ReLUSAE",
        "SpaDE",
        "TopKSAE",
        "load_module",
        "load_sae",
    ),
    "sae_lightning.data": (
        "ActivationBatch",
        "CachedDataModule",
        "FormalLanguageDataModule",
        "HeterogeneityDataModule",
        "ImageDataModule",
        "LiveDataModule",
        "SentenceDataModule",
        "SeparabilityDataModule",
        "TensorDataModule",
    ),
    "sae_lightning.callbacks": ("load_codes", "load_results"),
    "sae_lightning.subjects": ("LanguageModel", "VisionModel"),
}

__all__ = [
    "ActivationBatch",
    "BaseSAE",
    "CachedDataModule",
    "Comparison",
    "ComposedSAE",
    "FormalLanguageDataModule",
    "HeterogeneityDataModule",
    "ImageDataModule",
    "JumpReLUSAE",
    "LanguageModel",
    "LiveDataModule",
    "ReLUSAE",
    "SentenceDataModule",
    "SeparabilityDataModule",
    "SpaDE",
    "TensorDataModule",
    "TopKSAE",
    "VisionModel",
    "__version__",
    "load_codes",
    "load_module",
    "load_results",
    "load_sae",
]


def __getattr__(name: str) -> Any:
    for module, names in _PUBLIC.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
