"""Texts in local files: plain text, or JSON lines."""

import codecs
import json
from typing import Any

from sae_lightning.data.sources.base import Source, TextExample, UnreadableError
from sae_lightning.data.sources.blocks import UNITS, BlockIndex, Unit
from sae_lightning.data.sources.concepts import concept_of_label
from sae_lightning.data.sources.paths import find_files
from sae_lightning.run.files import EncodingError, decode_text


class TextFiles(Source[TextExample]):
    r"""Texts in plain text files, without labels.

    The constructor only locates the texts; a text is read on access. Its document is the path of its file, relative to
    the folder of the search.

    Args:
        path: A file; a folder, which is searched recursively for `*.txt`; or a pattern with `*` and `**`.
        unit: What counts as a text: a non-blank `line` without its line end; a `paragraph`, lines that are separated
            from others by blank lines; or a whole `file`. Line ends `\r\n` are converted to `\n`.
        encoding: Encoding of the files. For lines and paragraphs, it must encode `\n` as one byte, like UTF-8. A byte
            order mark is removed.

    Raises:
        ValueError: If an argument is out of range, no file is found, or the files hold no text.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sae_lightning.data.sources import TextFiles
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.txt").write_text("A first text,\nof two lines.\n\nA second one.\n")
        ...     texts = TextFiles(folder)
        ...     len(texts), texts[1].document, texts[1].text
        (2, 'a.txt', 'A second one.')
    """

    def __init__(self, path: str, unit: Unit = "paragraph", encoding: str = "utf-8") -> None:
        if unit not in UNITS:
            raise ValueError(f"unit must be one of {list(UNITS)}, but is {unit!r}")
        self.concept_names = []
        self._unit = unit
        self._encoding = _checked_encoding(encoding, unit)
        self._texts = BlockIndex.of(find_files(path, ".txt"), unit)
        if not len(self._texts):
            raise ValueError(f"path must lead to at least one text, but there is none at {path!r}")

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self._texts)

    def __getitem__(self, index: int) -> TextExample:
        """Read one text."""
        file, block = self._texts[range(len(self))[index]]
        try:
            text = decode_text(block.data, file.name, self._encoding, block.begin, block.line)
        except EncodingError as error:
            raise UnreadableError(file.name, str(error)) from None
        text = text.replace("\r\n", "\n")
        return TextExample(file.name, text if self._unit == "file" else text.rstrip("\n"))


class JsonLines(Source[TextExample]):
    r"""Texts in files with one JSON object per line, optionally with the concept of each text.

    The constructor only locates the lines; a line is read on access. Its document is the path of its file, relative to
    the folder of the search, and the line number (`a.jsonl:1`), unless `document_key` is given.

    Args:
        path: A file; a folder, which is searched recursively for `*.jsonl`; or a pattern with `*` and `**`.
        key: Key of the text.
        label_key: Key of the concept: its name, or its index in `concept_names`; null and -1 stand for none.
        document_key: Key of the document's name, a string or an integer, if several lines may belong to one document.
        concept_names: Names of the concepts; required with `label_key`.

    Raises:
        ValueError: If an argument is out of range, no file is found, or the files hold no line.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sae_lightning.data.sources import JsonLines
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.jsonl").write_text('{"text": "Fine.", "mood": "good"}\n')
        ...     JsonLines(folder, label_key="mood", concept_names=["bad", "good"])[0].concept
        1
    """

    def __init__(
        self,
        path: str,
        key: str = "text",
        label_key: str | None = None,
        document_key: str | None = None,
        concept_names: list[str] | None = None,
    ) -> None:
        if (label_key is None) != (not concept_names):
            raise ValueError(
                f"concept_names must be given with label_key and only then, but are {concept_names} with "
                f"label_key = {label_key!r}"
            )
        self.concept_names = list(concept_names or [])
        self._key = key
        self._label_key = label_key
        self._document_key = document_key
        self._lines = BlockIndex.of(find_files(path, ".jsonl"), "line")
        if not len(self._lines):
            raise ValueError(f"path must lead to at least one line, but there is none at {path!r}")

    def __len__(self) -> int:
        """Return the number of non-blank lines."""
        return len(self._lines)

    def __getitem__(self, index: int) -> TextExample:
        """Read the text of one line."""
        file, block = self._lines[range(len(self))[index]]
        place = f"{file.name}:{block.line}"
        try:
            row = json.loads(decode_text(block.data, file.name, begin=block.begin, line=block.line))
            text = _value(row, self._key)
            if not isinstance(text, str):
                raise ValueError(f"{self._key!r} must be a text, but is {text!r:.200}")
            text.encode()  # raises for lone surrogates, which JSON allows and tokenizers reject
            document = place if self._document_key is None else _value(row, self._document_key)
            if not isinstance(document, str | int):
                raise ValueError(f"{self._document_key!r} must be a text or an integer, but is {document!r}")
            label = None if self._label_key is None else _value(row, self._label_key)
            return TextExample(str(document), text, concept=concept_of_label(label, self.concept_names))
        except RecursionError:
            raise UnreadableError(place, "its JSON is nested too deep") from None
        except ValueError as error:
            raise UnreadableError(place, str(error)) from None


def _value(row: Any, key: str) -> object:
    if not isinstance(row, dict) or key not in row:
        raise ValueError(f"it must hold {key!r}, but holds {list(row) if isinstance(row, dict) else row!r:.200}")
    return row[key]


def _checked_encoding(encoding: str, unit: Unit) -> str:
    try:
        name = codecs.lookup(encoding).name
        one_byte = b"a\n".decode(name) == "a\n"
    except LookupError:  # also raised by codecs that are not text encodings
        raise ValueError(f"encoding must be one that Python knows, but is {encoding!r}") from None
    except UnicodeError:
        one_byte = False
    if unit != "file" and not one_byte:
        raise ValueError(f"encoding must write the end of a line as one byte for unit = {unit!r}, but is {encoding!r}")
    return name
