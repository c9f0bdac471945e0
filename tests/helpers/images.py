"""Little image files that tests write themselves."""

import gzip
from pathlib import Path

import torch
from torch import Tensor


def idx_bytes(values: Tensor, kind: int = 0x08) -> bytes:
    """A tensor of bytes in the IDX format."""
    header = bytes([0, 0, kind, values.ndim]) + b"".join(size.to_bytes(4, "big") for size in values.shape)
    return header + bytes(values.to(torch.uint8).flatten().tolist())


def write_idx(path: Path, values: Tensor) -> str:
    """Write an IDX file, packed where its name ends with .gz."""
    written = idx_bytes(values)
    path.write_bytes(gzip.compress(written) if path.suffix == ".gz" else written)
    return str(path)


def stripes(n: int, size: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images of two classes, horizontal and vertical stripes under noise: uint8 `(n, size, size)`, and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(2, (n,), generator=generator)
    lines = (torch.arange(size) // 2 % 2).float()
    pure = torch.stack([lines[:, None].expand(size, size), lines.expand(size, size)])[labels]
    noise = torch.rand(n, size, size, generator=generator)
    return (180 * pure + 75 * noise).to(torch.uint8), labels


def write_mnist_like(folder: Path, n_train: int = 64, n_test: int = 24, size: int = 8) -> Path:
    """The four files that MNIST comes in, with stripes."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, n, ending in (("train", n_train, ".gz"), ("t10k", n_test, "")):
        pixels, labels = stripes(n, size, seed=n)
        write_idx(folder / f"{name}-images-idx3-ubyte{ending}", pixels)
        write_idx(folder / f"{name}-labels-idx1-ubyte{ending}", labels)
    return folder
