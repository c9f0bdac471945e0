"""Images in IDX files, the format of MNIST and similar data."""

import gzip
import math
import os
import zlib
from pathlib import Path

import torch
from torch import Tensor

from sae_lightning.data.sources.base import ImageExample, Source

_UINT8 = 0x08  # type code in IDX
_GZIP = b"\x1f\x8b"
_CHUNK = 2**20  # bytes


def read_idx(path: str | os.PathLike[str], n_dimensions: int) -> Tensor:
    """Read an IDX file of unsigned bytes, plain or compressed by gzip.

    The format is: two zero bytes, the type (one byte), the number of dimensions (one byte), the size of each dimension
    (big-endian, 32 bits), and the values.

    Args:
        path: The file.
        n_dimensions: Expected number of dimensions.

    Returns:
        The values, uint8.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another format, type or rank, is empty or damaged, or its length differs from its
            header.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {os.fspath(path)!r}")
    name = os.fspath(path)
    with open(path, "rb") as raw:
        packed = raw.read(2) == _GZIP
    try:
        with gzip.open(path) if packed else open(path, "rb") as file:
            header = file.read(4)
            if len(header) < 4 or header[:2] != b"\0\0":
                raise ValueError(f"{name!r} must be an IDX file, which begins with two zero bytes, but is none")
            if header[2] != _UINT8:
                raise ValueError(f"{name!r} must hold unsigned bytes, IDX type 0x08, but holds type 0x{header[2]:02x}")
            if header[3] != n_dimensions:
                raise ValueError(f"{name!r} must have {n_dimensions} dimensions, but has {header[3]}")
            sizes = [int.from_bytes(file.read(4), "big") for _ in range(n_dimensions)]
            expected = math.prod(sizes)
            if expected == 0:
                raise ValueError(f"{name!r} must hold a value, but its header gives it the shape {tuple(sizes)}")
            values = bytearray()
            # read in pieces, up to one byte more than expected: a forged header cannot exhaust the memory
            while len(values) <= expected and (piece := file.read(min(_CHUNK, expected + 1 - len(values)))):
                values += piece
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{name!r} cannot be unpacked (truncated or damaged?): {error}") from error
    if len(values) != expected:
        found = "more" if len(values) > expected else f"{len(values)} (truncated?)"
        raise ValueError(f"{name!r} must hold {expected} values, as its header says, but holds {found}")
    return torch.frombuffer(values, dtype=torch.uint8).view(sizes)


class IdxImages(Source[ImageExample]):
    """Grayscale images in an IDX file, the format of MNIST and Fashion-MNIST.

    Args:
        images: IDX file of unsigned bytes `(n, height, width)`, plain or compressed by gzip.
        labels: IDX file of unsigned bytes `(n,)`; None for unlabeled images.
        concept_names: Names of the classes in the order of their labels; None numbers them.

    Attributes:
        pixels: All images, uint8 `(n, height, width)`.
        concepts: Class of each, int64 `(n,)`, -1 for none.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged or of another format, the numbers of labels and images differ, or there are
            fewer names than classes.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from sae_lightning.data.sources import IdxImages
        >>> with TemporaryDirectory() as folder:
        ...     path = Path(folder, "images")
        ...     header = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2])  # one image of 2 x 2 pixels
        ...     _ = path.write_bytes(header + bytes([1, 2, 3, 4]))
        ...     IdxImages(str(path)).pixels
        tensor([[[1, 2],
                 [3, 4]]], dtype=torch.uint8)
    """

    def __init__(self, images: str, labels: str | None = None, concept_names: list[str] | None = None) -> None:
        self.pixels = read_idx(images, 3)
        self._name = Path(images).name
        n = len(self.pixels)
        if labels is None:
            if concept_names:
                raise ValueError(f"concept_names must be None without labels, but are {concept_names}")
            self.concepts = torch.full((n,), -1)
            self.concept_names = []
            return
        self.concepts = read_idx(labels, 1).long()
        if len(self.concepts) != n:
            raise ValueError(
                f"labels must be as many as the {n} images in {images!r}, but {labels!r} holds {len(self.concepts)}"
            )
        highest = int(self.concepts.max())
        self.concept_names = concept_names or [f"C{i}" for i in range(highest + 1)]
        if highest >= len(self.concept_names):
            raise ValueError(
                f"concept_names must name all classes, but there are {len(self.concept_names)} names, and labels in "
                f"{labels!r} reach {highest}"
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> ImageExample:
        from PIL import Image

        image = Image.fromarray(self.pixels[index].numpy())
        return ImageExample(f"{self._name}#{index}", image, int(self.concepts[index]))
