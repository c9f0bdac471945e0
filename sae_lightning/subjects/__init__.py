"""Models for SAEs to explain: small transformers of text and images, and their training.

Public names are imported on first use, to avoid a circular import: data modules load these models, and these models are
trained on data modules.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lightning.subjects.language_model import LanguageModel
    from sae_lightning.subjects.transformer import Transformer
    from sae_lightning.subjects.vision_model import VisionModel
    from sae_lightning.subjects.vision_transformer import VisionTransformer

_MODULES = {
    "LanguageModel": "sae_lightning.subjects.language_model",
    "Transformer": "sae_lightning.subjects.transformer",
    "VisionModel": "sae_lightning.subjects.vision_model",
    "VisionTransformer": "sae_lightning.subjects.vision_transformer",
}

__all__ = ["LanguageModel", "Transformer", "VisionModel", "VisionTransformer"]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
