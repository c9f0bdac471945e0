"""Pieces of text files, found by their bytes and read when they are asked for."""

from array import array
from codecs import BOM_UTF8
from collections.abc import Iterator
from typing import Literal, NamedTuple

from sae_lightning.data.sources.base import UnreadableError
from sae_lightning.data.sources.paths import NamedFile

Unit = Literal["line", "paragraph", "file"]
UNITS = ("line", "paragraph", "file")


class Block(NamedTuple):
    """A piece of a file."""

    begin: int
    """Its first byte in the file."""
    line: int
    """Its first line in the file, from 1."""
    data: bytes
    """What it holds, with the ends of its lines."""


def blocks(path: str, unit: Unit) -> Iterator[Block]:
    """The pieces of a file that hold more than blanks: its lines, its runs of lines that are not blank, or the whole.

    Lines end in the byte of a line feed, so the text's encoding must write that as one byte. UTF-8's mark of the byte
    order in front of a file is left out.

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
    """Where pieces of files are; holds none of them.

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
        """All pieces of the files.

        Raises:
            ValueError: If a file cannot be read.
        """
        index = cls(files)
        for number in range(len(files)):
            for block in index.scan(number, unit):
                index.add(number, block)
        return index

    def scan(self, number: int, unit: Unit) -> Iterator[Block]:
        """The pieces of one file.

        Raises:
            ValueError: If it cannot be read.
        """
        path = self.files[number].path
        try:
            yield from blocks(path, unit)
        except OSError as error:
            raise ValueError(f"path must lead to readable files, but {path!r} is not: {error.strerror}") from None

    def add(self, number: int, block: Block) -> None:
        """Remember where a piece of file `number` is."""
        self._file.append(number)
        self._begin.append(block.begin)
        self._size.append(len(block.data))
        self._line.append(block.line)

    def __len__(self) -> int:
        """Number of pieces."""
        return len(self._file)

    def __getitem__(self, index: int) -> tuple[NamedFile, Block]:
        """A piece, read anew, and its file.

        Raises:
            UnreadableError: If the file is gone, or shorter than it was.
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
