"""Sources of texts and images that a model reads."""

from sae_lightning.data.sources.base import ImageExample, Source, StreamedSource, TextExample, UnreadableError
from sae_lightning.data.sources.idx import IdxImages
from sae_lightning.data.sources.images import HuggingFaceImages, ImageFolder

__all__ = [
    "HuggingFaceImages",
    "IdxImages",
    "ImageExample",
    "ImageFolder",
    "Source",
    "StreamedSource",
    "TextExample",
    "UnreadableError",
]
