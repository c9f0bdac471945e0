"""Sentences of treebanks in CoNLL-U format, with a tag for each word."""

import re
from collections.abc import Iterator
from typing import Literal, NamedTuple

from sae_lightning.data.sources.base import Source, TextExample, UnreadableError
from sae_lightning.data.sources.blocks import BlockIndex
from sae_lightning.data.sources.concepts import concept_of_tag
from sae_lightning.data.sources.paths import find_files
from sae_lightning.run.files import EncodingError, decode_text

UPOS = [
    *("NOUN", "PROPN", "VERB", "AUX", "ADJ", "ADV", "PRON", "DET", "ADP", "NUM"),
    *("CCONJ", "SCONJ", "PART", "INTJ", "SYM", "PUNCT", "X"),
]
"""The 17 parts of speech of Universal Dependencies."""

_COLUMNS = {"upos": 3, "xpos": 4, "deprel": 7}
_COMMENT = re.compile(r"#\s*(text|newdoc(?:\s+id)?)\s*(?:=\s*(.*?)\s*)?")


class ConlluFiles(Source[TextExample]):
    r"""Sentences of treebanks in CoNLL-U format, with a tag for each word.

    The text of a sentence is that of its comment `# text`, or else its words, separated by spaces except after
    `SpaceAfter=No`. Its document is that of the last `# newdoc` comment in the file, or else the file.

    Empty nodes (`8.1`) are skipped. If the words of a multiword token (`1-2`) concatenate to its form ("do" and "n't"),
    each has its own position. Otherwise ("zum" for "zu" and "dem") the token counts as one word, with the tag of its
    first word.

    The constructor only locates the sentences; a sentence is read and checked on access, and errors name file and line.

    Args:
        path: A file; a folder, which is searched recursively for `*.conllu`; or a pattern with `*` and `**`.
        concepts: The tags of each concept, by its name; words with other tags have no concept. None makes each of the
            17 tags of `upos` a concept: NOUN, PROPN, VERB, AUX, ADJ, ADV, PRON, DET, ADP, NUM, CCONJ, SCONJ, PART,
            INTJ, SYM, PUNCT and X.
        field: Column of the tags: universal parts of speech (upos), the treebank's own (xpos), or the relation to the
            head (deprel).

    Raises:
        ValueError: If an argument is out of range, no file is found, or the files hold no sentence.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sae_lightning.data.sources import ConlluFiles
        >>> rows = ["1\tDogs\tdog\tNOUN", "2\tbark\tbark\tVERB"]
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.conllu").write_text("\n".join(row + 6 * "\t_" for row in rows) + "\n\n")
        ...     ConlluFiles(folder, concepts={"noun": ["NOUN"], "verb": ["VERB"]})[0]
        TextExample(document='a.conllu', text='Dogs bark', spans=((0, 4), (5, 9)), concepts=(0, 1), concept=-1)
    """

    def __init__(
        self,
        path: str,
        concepts: dict[str, list[str]] | None = None,
        field: Literal["upos", "xpos", "deprel"] = "upos",
    ) -> None:
        if field not in _COLUMNS:
            raise ValueError(f"field must be one of {list(_COLUMNS)}, but is {field!r}")
        if concepts is None:
            if field != "upos":
                raise ValueError(f"concepts must be given where field is {field!r}, which has no standard set of tags")
            concepts = {tag: [tag] for tag in UPOS}
        self._field = field
        self._concept_of = concept_of_tag(concepts, UPOS if field == "upos" else None)
        self.concept_names = list(concepts)
        self._sentences = BlockIndex(find_files(path, ".conllu"))
        self._documents: list[str] = []
        for number, file in enumerate(self._sentences.files):
            document, n_documents = file.name, 0
            for block in self._sentences.scan(number, "paragraph"):
                lines = block.data.decode("utf-8", errors="replace").split("\n")
                for key, value in (comment for line in lines for comment in _comment(line)):
                    if key.startswith("newdoc"):
                        n_documents += 1
                        document = value or f"{file.name}:{n_documents}"
                if any(line and not line.startswith("#") for line in lines):
                    self._sentences.add(number, block)
                    self._documents.append(document)
        if not self._documents:
            raise ValueError(f"path must lead to at least one sentence, but there is none at {path!r}")

    def __len__(self) -> int:
        """Return the number of sentences."""
        return len(self._documents)

    def __getitem__(self, index: int) -> TextExample:
        """Read one sentence."""
        index = range(len(self))[index]
        file, block = self._sentences[index]
        try:
            lines = decode_text(block.data, file.name, begin=block.begin, line=block.line)
            text, words = read_sentence(lines, block.line, _COLUMNS[self._field])
            if self._field == "upos":
                _check_upos(words)
        except EncodingError as error:
            raise UnreadableError(self._documents[index], str(error)) from None
        except ValueError as error:
            raise UnreadableError(self._documents[index], f"{file.name}, {error}") from None
        spans = tuple((word.begin, word.end) for word in words)
        return TextExample(
            self._documents[index], text, spans, tuple(self._concept_of.get(word.tag, -1) for word in words)
        )


class Word(NamedTuple):
    """A word in a text."""

    begin: int
    """First character."""
    end: int
    """One past the last character."""
    tag: str
    line: int


class _Token(NamedTuple):
    """A word or multiword token, with the form and the tag of each of its words."""

    form: str
    space: str
    line: int
    words: list[tuple[str, str]]


def read_sentence(lines: str, first: int, column: int) -> tuple[str, list[Word]]:
    """Parse a sentence into its text and words.

    Args:
        lines: The sentence in CoNLL-U.
        first: Number of its first line, for errors.
        column: Column of the tags, from 0.

    Raises:
        ValueError: If the sentence is malformed, or its text lacks a word; the message names the line.
    """
    rows = list(enumerate(lines.rstrip("\r\n").replace("\r\n", "\n").split("\n"), first))
    tokens = _tokens([(number, row) for number, row in rows if not row.startswith("#")], column)
    texts = [value for _, row in rows for key, value in _comment(row) if key == "text" and value]
    text = texts[0] if texts else "".join(token.form + token.space for token in tokens).rstrip(" ")
    words: list[Word] = []
    position = 0
    for token in tokens:
        begin = _skip_blanks(text, position)
        if not text.startswith(token.form, begin):
            raise ValueError(
                f"line {token.line}: {token.form!r} must come next in the sentence, but {text!r} continues with "
                f"{text[begin : begin + 20]!r}"
            )
        position = begin + len(token.form)
        if token.form == "".join(form for form, _ in token.words):
            for form, tag in token.words:
                words.append(Word(begin, begin + len(form), tag, token.line))
                begin += len(form)
        else:
            words.append(Word(begin, position, token.words[0][1], token.line))
    if text[position:].strip():
        raise ValueError(f"line {first}: the words of {text!r} must reach its end, but leave {text[position:]!r}")
    return text, words


def _skip_blanks(text: str, position: int) -> int:
    while position < len(text) and text[position].isspace():
        position += 1
    return position


def _tokens(rows: list[tuple[int, str]], column: int) -> list[_Token]:
    tokens: list[_Token] = []
    last, last_in_token = 0, 0
    for number, row in rows:
        columns = row.split("\t")
        if len(columns) != 10:
            raise ValueError(f"line {number}: a word must have 10 columns with tabs between, but has {len(columns)}")
        if re.fullmatch(r"[0-9]+\.[0-9]+", columns[0]):
            continue
        form, space = columns[1], "" if "SpaceAfter=No" in columns[9].split("|") else " "
        if not form:
            raise ValueError(f"line {number}: a word must have a form, but it is empty")
        several = re.fullmatch(r"([0-9]+)-([0-9]+)", columns[0])
        if several and last >= last_in_token and int(several[1]) == last + 1 and int(several[2]) > last:
            last_in_token = int(several[2])
            tokens.append(_Token(form, space, number, []))
            continue
        if columns[0] != str(last + 1):
            raise ValueError(f"line {number}: the number of a word must be {last + 1} here, but is {columns[0]!r}")
        if last >= last_in_token:
            tokens.append(_Token(form, space, number, []))
        tokens[-1].words.append((form, columns[column]))
        last += 1
    if last < last_in_token:
        raise ValueError(
            f"line {tokens[-1].line}: {tokens[-1].form!r} must reach to word {last_in_token}, but the sentence ends "
            f"with word {last}"
        )
    return tokens


def _comment(line: str) -> Iterator[tuple[str, str]]:
    """Yield key and value of a line, if it is a comment `text` or `newdoc`."""
    found = _COMMENT.fullmatch(line.rstrip("\r\n"))
    if found:
        yield found[1], found[2] or ""


def _check_upos(words: list[Word]) -> None:
    for word in words:
        if word.tag != "_" and word.tag not in UPOS:
            raise ValueError(f"line {word.line}: a part of speech must be one of {UPOS}, but is {word.tag!r}")
