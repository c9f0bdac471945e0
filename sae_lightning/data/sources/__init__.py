"""Sources of texts and images that a model reads."""

from sae_lightning.data.sources.base import ImageExample, Source, StreamedSource, TextExample, UnreadableError
from sae_lightning.data.sources.conllu import ConlluFiles
from sae_lightning.data.sources.tagged import TaggedCorpus

__all__ = ["ConlluFiles", "ImageExample", "Source", "StreamedSource", "TaggedCorpus", "TextExample", "UnreadableError"]
