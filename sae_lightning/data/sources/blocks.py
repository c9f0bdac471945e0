"""Index of the lines or paragraphs of text files, by position in bytes, so that they can be read on access."""

from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Literal, NamedTuple

from sae_lightning.data.sources.base import UnreadableError
from sae_lightning.data.sources.paths import NamedFile

Unit = Literal["line", "paragraph", "file"]
UNITS = ("line", "paragraph", "file")


class Block(NamedTuple):
    """A piece of a file: a line, a paragraph or the whole."""

    begin: int
    """Offset of its first byte."""
    line: int
    """Number of its first line, from 1."""
    data: bytes
    """Its bytes, line ends included."""


def blocks(path: str, unit: Unit) -> Iterator[Block]:
    """Yield the non-blank lines, the paragraphs (runs of non-blank lines), or the whole of a file.

    Lines end at the byte of a line feed, so the encoding must write it as one byte. UTF-8's byte order mark is skipped.

    Raises:
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as file:
        position = len(BOM_UTF8) if file.read(len(BOM_UTF8)) == BOM_UTF8 else 0
        file.seek(position)
        if unit == "file":
            data = file.read()
            if data.strip():
                yield Block(position, 1, data)
            return
        begin, first, parts = 0, 1, list[bytes]()
        for number, line in enumerate(file, 1):
            filled = bool(line.strip())
            if filled and not parts:
                begin, first = position, number
            if filled:
                parts.append(line)
            if parts and (not filled or unit == "line"):
                yield Block(begin, first, b"".join(parts))
                parts.clear()
            position += len(line)
        if parts:
            yield Block(begin, first, b"".join(parts))


class BlockIndex:
    """Index of the positions of pieces in files; it does not hold their bytes.

    Args:
        files: The files.
    """

    def __init__(self, files: list[NamedFile]) -> None:
        self.files = files
        self._file = array("I")
        self._begin = array("Q")
        self._size = array("Q")
        self._line = array("Q")

    @classmethod
    def of(cls, files: list[NamedFile], unit: Unit) -> "BlockIndex":
        """Index all pieces of the files.

        Raises:
            ValueError: If a file cannot be read.
        """
        index = cls(files)
        for number in range(len(files)):
            for block in index.scan(number, unit):
                index.add(number, block)
        return index

    def scan(self, number: int, unit: Unit) -> Iterator[Block]:
        """Yield the pieces of file `number`.

        Raises:
            ValueError: If it cannot be read.
        """
        path = self.files[number].path
        try:
            yield from blocks(path, unit)
        except OSError as error:
            raise ValueError(f"path must lead to readable files, but {path!r} is not: {error.strerror}") from None

    def add(self, number: int, block: Block) -> None:
        """Add the position of a piece of file `number`."""
        self._file.append(number)
        self._begin.append(block.begin)
        self._size.append(len(block.data))
        self._line.append(block.line)

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self._file)

    def __getitem__(self, index: int) -> tuple[NamedFile, Block]:
        """Read a piece; return its file and the piece.

        Raises:
            UnreadableError: If the file has been removed or has become shorter.
        """
        file, begin, size = self.files[self._file[index]], self._begin[index], self._size[index]
        try:
            with open(file.path, "rb") as opened:
                opened.seek(begin)
                data = opened.read(size)
        except OSError as error:
            raise UnreadableError(file.name, str(error.strerror)) from None
        if len(data) < size:
            raise UnreadableError(file.name, "it has become shorter since it was first read")
        return file, Block(begin, self._line[index], data)
