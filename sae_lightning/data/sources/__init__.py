"""Sources of texts and images for host models."""

from sae_lightning.data.sources.base import ImageExample, Source, StreamedSource, TextExample, UnreadableError
from sae_lightning.data.sources.conllu import ConlluFiles
from sae_lightning.data.sources.huggingface import HuggingFaceText, HuggingFaceTextStream
from sae_lightning.data.sources.idx import IdxImages
from sae_lightning.data.sources.images import HuggingFaceImages, ImageFolder
from sae_lightning.data.sources.tagged import TaggedCorpus
from sae_lightning.data.sources.text import JsonLines, TextFiles

__all__ = [
    "ConlluFiles",
    "HuggingFaceImages",
    "HuggingFaceText",
    "HuggingFaceTextStream",
    "IdxImages",
    "ImageExample",
    "ImageFolder",
    "JsonLines",
    "Source",
    "StreamedSource",
    "TaggedCorpus",
    "TextExample",
    "TextFiles",
    "UnreadableError",
]
