"""Sentences of NLTK's tagged corpora, with the part of speech of each word."""

import copy
import os
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from typing import Any

from sae_lightning.data.sources.base import Source, TextExample
from sae_lightning.data.sources.concepts import concept_of_tag
from sae_lightning.data.sources.tags import UNIVERSAL, Tagset, check_tagset, universal_tag
from sae_lightning.run.files import EncodingError, decode_text

_TRACE = "-NONE-"  # Penn's tag of an empty element of the parse, which is not a word of the text


class TaggedCorpus(Source[TextExample]):
    """Sentences of one of NLTK's tagged corpora, with the part of speech of each word.

    A text is the words of a sentence, separated by spaces; its document is the file in the corpus. The constructor
    reads the corpus into memory.

    Args:
        corpus: Name of a tagged corpus in `nltk.corpus`, such as `brown`, `treebank` or `conll2000`.
        root: Folder of NLTK's data, which holds `corpora/<corpus>`; None searches NLTK's default folders, starting
            with those in the environment variable NLTK_DATA.
        categories: Categories of the corpus to read; None reads all files.
        concepts: The universal tags of each concept, by its name, as in `{noun: [NOUN], verb: [VERB]}`; words with
            other tags have no concept. None makes each of the twelve tags a concept: noun, verb, adjective, adverb,
            pronoun, determiner, adposition, numeral, conjunction, particle, other (X) and punctuation (.).
        tagset: Tagset of the corpus: that of Brown, of the Penn Treebank (also conll2000), or universal.

    Raises:
        ValueError: If an argument is out of range, or the corpus is missing, empty, unreadable, or holds a tag that is
            not in the tagset.
    """

    def __init__(
        self,
        corpus: str = "brown",
        root: str | None = None,
        categories: list[str] | None = None,
        concepts: dict[str, list[str]] | None = None,
        tagset: Tagset = "brown",
    ) -> None:
        check_tagset(tagset)
        concepts = {name: [tag] for tag, name in UNIVERSAL.items()} if concepts is None else concepts
        self.concept_names = list(concepts)
        concept_of = concept_of_tag(concepts, UNIVERSAL)
        # flat arrays, because tuples would take twenty times the memory
        self._documents: list[str] = []
        self._texts: list[str] = []
        self._document_of = array("I")
        self._begins = array("Q", [0])
        self._lengths = array("I")
        self._concepts = array("b")
        with _searched(root):
            self._read(corpus, categories, tagset, concept_of)
        if not self._texts:
            raise ValueError(f"corpus must hold at least one sentence, but {corpus!r} holds none")

    def _read(self, corpus: str, categories: list[str] | None, tagset: Tagset, concept_of: dict[str, int]) -> None:
        reader = _open_corpus(corpus)
        self._documents = _file_ids(reader, corpus, categories)
        concept_of_own: dict[str, int] = {}
        for number, document in enumerate(self._documents):
            for sentence in _sentences(reader, corpus, document):
                for _, tag in sentence:
                    if tag not in concept_of_own:
                        universal = universal_tag(tag, tagset)
                        if universal is None:
                            raise ValueError(
                                f"tagset must know every tag of corpus {corpus!r}, but {tagset!r} does not know "
                                f"{tag!r} in {document!r}"
                            )
                        concept_of_own[tag] = concept_of.get(universal, -1)
                self._texts.append(" ".join(word for word, _ in sentence))
                self._document_of.append(number)
                self._lengths.extend(len(word) for word, _ in sentence)
                self._concepts.extend(concept_of_own[tag] for _, tag in sentence)
                self._begins.append(len(self._concepts))

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self._texts)

    def __getitem__(self, index: int) -> TextExample:
        """Return one sentence."""
        index = range(len(self))[index]
        words = slice(self._begins[index], self._begins[index + 1])
        lengths = self._lengths[words]
        ends = accumulate(lengths, lambda end, length: end + 1 + length)
        spans = tuple((end - length, end) for end, length in zip(ends, lengths, strict=True))
        document = self._documents[self._document_of[index]]
        return TextExample(document, self._texts[index], spans, tuple(self._concepts[words]))


@contextmanager
def _searched(root: str | None) -> Iterator[None]:
    """Restrict NLTK's search path to one folder."""
    import nltk.data

    before = nltk.data.path
    try:
        nltk.data.path = before if root is None else [os.path.expanduser(root)]
        yield
    finally:
        nltk.data.path = before


def _open_corpus(corpus: str) -> Any:
    """Return NLTK's reader of a corpus."""
    import nltk.corpus
    import nltk.data
    from nltk.corpus.reader.api import CorpusReader
    from nltk.corpus.util import LazyCorpusLoader

    loader = getattr(nltk.corpus, corpus, None)
    if not isinstance(loader, LazyCorpusLoader | CorpusReader):
        raise ValueError(f"corpus must name one of those in nltk.corpus, but is {corpus!r}")
    if not isinstance(loader, LazyCorpusLoader):
        loader._unload()  # NLTK may have opened it from another folder; it reopens it on the next use
    reader = copy.copy(loader)  # NLTK's own loader stays unopened
    try:
        reader.ensure_loaded()
    except LookupError:
        raise ValueError(
            f"corpus must be one that nltk finds, but {corpus!r} is in none of {list(nltk.data.path)}: set root or the "
            f"environment variable NLTK_DATA to the folder that holds corpora/{corpus}"
        ) from None  # NLTK's message advises to download it
    if not hasattr(reader, "tagged_sents"):
        raise ValueError(f"corpus must be a tagged one, but {corpus!r} has no tags")
    return reader


def _file_ids(reader: Any, corpus: str, categories: list[str] | None) -> list[str]:
    """Return the files of the categories, in the order of the corpus."""
    if categories is None:
        return list(reader.fileids())
    if not hasattr(reader, "categories"):
        raise ValueError(f"categories must be None for a corpus without them, {corpus!r}, but is {categories}")
    try:
        known = list(reader.categories())
    except (OSError, ValueError) as error:
        raise _unreadable(reader, corpus, reader._file, error) from None
    if not categories or not set(categories) <= set(known):
        raise ValueError(f"categories must name some of those of {corpus!r}, {known}, but is {categories}")
    return list(reader.fileids(categories=categories))


def _sentences(reader: Any, corpus: str, document: str) -> Iterator[list[tuple[str, str]]]:
    """Yield the words and tags of each non-empty sentence of a file."""
    try:
        for tagged in reader.tagged_sents(fileids=[document]):
            sentence = [(word, tag or "") for word, tag in tagged if tag != _TRACE]
            if sentence:
                yield sentence
    except (OSError, ValueError) as error:
        raise _unreadable(reader, corpus, document, error) from None


def _unreadable(reader: Any, corpus: str, file: str, error: Exception) -> ValueError:
    """Return the error for an unreadable file of a corpus."""
    if isinstance(error, UnicodeDecodeError):  # its position is relative to a chunk: find the position in the file
        path = reader.abspath(file)
        try:
            with path.open() as opened:
                decode_text(opened.read(), str(path), error.encoding)
        except EncodingError as found:
            error = found
    return ValueError(f"corpus must be readable, but {file!r} of {corpus!r} is not: {error}")
