"""Texts in files of one's own: plain text, or JSON with a text in each line."""

import codecs
import json
from typing import Any

from sae_lightning.data.sources.base import Source, TextExample, UnreadableError
from sae_lightning.data.sources.blocks import UNITS, BlockIndex, Unit
from sae_lightning.data.sources.concepts import concept_of_label
from sae_lightning.data.sources.paths import find_files
from sae_lightning.run.files import EncodingError, decode_text


class TextFiles(Source[TextExample]):
    r"""Texts in plain text files, without concepts.

    Files are searched for the begin and end of each text when the source is made, and a text is read when it is asked
    for. Its document is the path of its file, from the folder where the search began.

    Args:
        path: A file; a folder, which is searched to any depth for `*.txt`; or a pattern of files with `*` and `**`.
        unit: What a text is: a `line` that is not blank, without what ends it; a `paragraph`, the lines between two
            blank ones; or a whole `file`. In all of them `\n` ends a line, where the file may have `\r\n`.
        encoding: Encoding of the files. Lines and paragraphs need one that writes the end of a line as one byte, as
            UTF-8 does. A mark of the byte order in front is no part of the text.

    Raises:
        ValueError: If an argument is out of range, or there is no file, or none that holds a text.
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
        """Number of texts."""
        return len(self._texts)

    def __getitem__(self, index: int) -> TextExample:
        """One text."""
        file, block = self._texts[range(len(self))[index]]
        try:
            text = decode_text(block.data, file.name, self._encoding, block.begin, block.line)
        except EncodingError as error:
            raise UnreadableError(file.name, str(error)) from None
        text = text.replace("\r\n", "\n")
        return TextExample(file.name, text if self._unit == "file" else text.rstrip("\n"))


class JsonLines(Source[TextExample]):
    """Texts in files with a JSON object in each line, maybe with the concept of each text.

    Files are searched for lines when the source is made, and a line is read when it is asked for. Its document is the
    path of its file, from the folder where the search began, with the number of the line (`a.jsonl:1`).

    Args:
        path: A file; a folder, which is searched to any depth for `*.jsonl`; or a pattern of files with `*` and `**`.
        key: Key of the text.
        label_key: Key of the concept: its name, or its number in `concept_names`; null and -1 stand for none.
        document_key: Key of the document's name, a text or an integer, where several lines belong to one document.
        concept_names: Names of the concepts; needed with `label_key`.

    Raises:
        ValueError: If an argument is out of range, or there is no file, or none that holds a line.
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
        """Number of lines that are not blank."""
        return len(self._lines)

    def __getitem__(self, index: int) -> TextExample:
        """The text of one line."""
        file, block = self._lines[range(len(self))[index]]
        place = f"{file.name}:{block.line}"
        try:
            row = json.loads(decode_text(block.data, file.name, begin=block.begin, line=block.line))
            text = _value(row, self._key)
            if not isinstance(text, str):
                raise ValueError(f"{self._key!r} must be a text, but is {text!r:.200}")
            text.encode()  # refuses halves of characters, which JSON lets pass and no tokenizer reads
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
    except LookupError:  # also from codecs that make no text
        raise ValueError(f"encoding must be one that Python knows, but is {encoding!r}") from None
    except UnicodeError:
        one_byte = False
    if unit != "file" and not one_byte:
        raise ValueError(f"encoding must write the end of a line as one byte for unit = {unit!r}, but is {encoding!r}")
    return name
