"""Host models of images, from Hugging Face or any importable module."""

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from sae_lightning.data.activations.hosts.base import Host, Piece, Rows, stack
from sae_lightning.data.activations.hosts.pretrained import load_pretrained
from sae_lightning.data.sources.base import ImageExample

ImageTokens = Literal["cls", "patches", "mean", "all"]


class _ImageHost(Host[ImageExample]):
    """Base of vision models; subclasses convert images to tensors.

    Args:
        model: The model.
        tokens: The activations to read.
        n_prefix: Number of tokens before those of the patches.
        argument: Name of the argument that takes the images; empty for the first one.
    """

    unit = "images"

    def __init__(self, model: nn.Module, tokens: ImageTokens, n_prefix: int, argument: str) -> None:
        super().__init__(model)
        if n_prefix < 0:
            raise ValueError(f"n_prefix must be at least 0, but is {n_prefix}")
        if tokens == "cls" and n_prefix == 0:
            raise ValueError("tokens must not be 'cls' for a model without tokens before its patches (n_prefix = 0)")
        self.tokens = tokens
        self.n_prefix = n_prefix
        self._argument = argument

    def collate(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """Stack all images."""
        return {self._argument: stack(pieces)["images"]}

    def rows(self, piece: Piece, n_tokens: int) -> Rows:
        """Return the tokens to read, with indices of patches as `starts`."""
        n_patches = n_tokens - self.n_prefix
        if n_patches < (self.tokens in ("patches", "mean")):
            raise ValueError(f"n_prefix must leave patches among the {n_tokens} tokens, but is {self.n_prefix}")
        concept = int(piece.inputs["concept"])
        if self.tokens in ("cls", "mean"):
            patches = torch.arange(self.n_prefix, n_tokens)[None]
            whole = torch.tensor([-1], dtype=torch.int32)
            return Rows(
                torch.zeros(1, dtype=torch.long) if self.tokens == "cls" else patches,
                torch.tensor([concept]),
                whole,
                whole,
            )
        places = torch.arange(0 if self.tokens == "all" else self.n_prefix, n_tokens)
        starts = (places - self.n_prefix).clamp(min=-1).int()
        ends = torch.where(starts < 0, -1, n_patches).int()
        return Rows(places, torch.full((len(places),), concept), starts, ends)


class ImageHost(_ImageHost):
    """A vision model from Hugging Face with its image processor.

    Args:
        name: Name on the hub, path of a folder, or `package:NAME/FOLDER` for a folder of an installed package.
        revision: Branch, tag or commit on the hub.
        tokens: The activations to read: those of the class token, of all patches, their mean over patches, or of all
            tokens.
        n_prefix: Number of tokens before those of the patches; None derives it from the model (class token and
            registers).
        dtype: Type in which the model runs.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ValueError: If the model cannot be loaded, or `n_prefix` cannot be derived from it.
    """

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        tokens: ImageTokens = "cls",
        n_prefix: int | None = None,
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        trust_remote_code: bool = False,
    ) -> None:
        model = load_pretrained(
            "AutoModel", name, revision=revision, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
        )
        self._processor: Any = load_pretrained(
            "AutoImageProcessor", name, revision=revision, trust_remote_code=trust_remote_code
        )
        self._dtype: torch.dtype = getattr(torch, dtype)
        super().__init__(model, tokens, _prefix_of(model, name) if n_prefix is None else n_prefix, "pixel_values")
        if getattr(self._processor, "do_center_crop", False):
            size = dict(getattr(self._processor, "size", None) or {})
            crop = dict(self._processor.crop_size)
            shorter = size.get("shortest_edge") or min(size.get("height", 0), size.get("width", 0))
            self.crop = min(1.0, crop["height"] / shorter) if shorter else None

    def pieces(self, examples: Sequence[ImageExample]) -> list[Piece]:
        """Convert images with the model's image processor."""
        if not examples:
            return []
        images = [example.image.convert("RGB") for example in examples]
        values = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._dtype)
        return [
            Piece(i, {"images": value, "concept": torch.tensor(example.concept)}, 1, None)
            for i, (value, example) in enumerate(zip(values, examples, strict=True))
        ]


class ModuleHost(_ImageHost):
    """Any importable torch module that takes a batch of images `(n, channels, image_size, image_size)`.

    Images are resized so that their shorter side is `image_size`, cropped to the central square, and normalized.

    Args:
        module: The module. On the command line: a class with its arguments, or a function that returns a module.
        image_size: Height and width of the module's input.
        weights: File with its weights (.safetensors, .pt or .ckpt); None keeps the module's own.
        tokens: The activations to read: those of the class token, of all patches, their mean over patches, or of all
            tokens.
        n_prefix: Number of tokens before those of the patches; 0 for a convolutional network, where each position of a
            feature map is a patch.
        channels: Channels of the module's input, 1 or 3.
        mean: Mean of each channel, which is subtracted from pixels in [0, 1]; None for 0.
        std: Standard deviation of each channel, by which the difference is divided; None for 1.

    Raises:
        ValueError: If an argument is out of range, or the weights do not fit the module.

    Example:
        >>> import torch
        >>> from PIL import Image
        >>> from sae_lightning.data.activations.hosts import ModuleHost
        >>> from sae_lightning.data.sources import ImageExample
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 8, kernel_size=2, stride=2))
        >>> host = ModuleHost(model, image_size=4, tokens="patches", n_prefix=0, channels=1)
        >>> pieces = host.pieces([ImageExample("gray.png", Image.new("L", (4, 4)))])
        >>> host.read(pieces, ["0"], torch.float32).activations["0"].shape  # four patches
        torch.Size([4, 8])
    """

    def __init__(
        self,
        module: nn.Module,
        image_size: int,
        weights: str | None = None,
        tokens: ImageTokens = "cls",
        n_prefix: int = 1,
        channels: Literal[1, 3] = 3,
        mean: list[float] | None = None,
        std: list[float] | None = None,
    ) -> None:
        for name, value in {"mean": mean, "std": std}.items():
            if value is not None and len(value) != channels:
                raise ValueError(f"{name} must hold a number for each of {channels} channels, but is {value}")
        if image_size < 1:
            raise ValueError(f"image_size must be at least 1, but is {image_size}")
        if weights is not None:
            _load_weights(module, weights)
        super().__init__(module, tokens, n_prefix, "")
        self.crop = 1.0
        self._size = image_size
        self._mode = "L" if channels == 1 else "RGB"
        self._mean = torch.tensor(mean or [0.0] * channels)[:, None, None]
        self._std = torch.tensor(std or [1.0] * channels)[:, None, None]

    def pieces(self, examples: Sequence[ImageExample]) -> list[Piece]:
        """Resize, crop and normalize images."""
        return [
            Piece(i, {"images": self._tensor(example.image), "concept": torch.tensor(example.concept)}, 1, None)
            for i, example in enumerate(examples)
        ]

    def _tensor(self, image: Any) -> Tensor:
        image = image.convert(self._mode)
        size = self._size
        if min(image.size) != size:
            scale = size / min(image.size)
            image = image.resize([max(size, round(side * scale)) for side in image.size], 3)  # bicubic
        left, top = ((side - size) // 2 for side in image.size)
        image = image.crop((left, top, left + size, top + size))
        values = torch.from_numpy(np.array(image, dtype=np.float32) / 255).reshape(size, size, -1).permute(2, 0, 1)
        return ((values - self._mean) / self._std).contiguous()


def _prefix_of(model: Any, name: str) -> int:
    """Derive the number of tokens before those of the patches from a model."""
    if not hasattr(model.config, "patch_size"):
        raise ValueError(f"n_prefix must be given for {name!r}, whose configuration has no patch_size")
    has_class_token = any(part.endswith(("cls_token", "class_embedding")) for part, _ in model.named_parameters())
    return int(has_class_token) + int(getattr(model.config, "num_register_tokens", 0) or 0)


def _load_weights(module: nn.Module, path: str) -> None:
    """Load weights from a file without executing code from it."""
    try:
        state: Any
        if os.fspath(path).endswith(".safetensors"):
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
            state = state.get("state_dict", state)
        module.load_state_dict(state)
    except Exception as error:  # damaged files raise many types of errors
        raise ValueError(f"weights in {path!r} must fit a {type(module).__name__}, but do not: {error}") from error
