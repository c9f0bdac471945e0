"""Images in folders and in Hugging Face datasets."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lightning.data.sources.base import ImageExample, Source, UnreadableError

if TYPE_CHECKING:
    from PIL.Image import Image

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_GRAY = ("L", "1", "LA", "La")


def as_gray_or_rgb(image: "Image") -> "Image":
    """Decode an image, rotate it by its EXIF orientation, and convert it to 8-bit grayscale (`L`) or `RGB`.

    Example:
        >>> from PIL import Image
        >>> from sae_lightning.data.sources.images import as_gray_or_rgb
        >>> as_gray_or_rgb(Image.new("RGBA", (2, 2))).mode, as_gray_or_rgb(Image.new("1", (2, 2))).mode
        ('RGB', 'L')
    """
    from PIL import Image, ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.mode.startswith("I"):  # 16-bit grayscale, which PIL's convert would clip at 255
        import numpy as np

        return Image.fromarray((np.asarray(turned).clip(0, 65_535) // 257).astype(np.uint8))
    return turned.convert("L" if turned.mode in _GRAY else "RGB")


def _images_below(folder: Path) -> list[Path]:
    """Return the non-hidden images in a folder and its subfolders, sorted by relative path."""
    found = [
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _ENDINGS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    ]
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


class ImageFolder(Source[ImageExample]):
    """Images in a folder (.png, .jpg, .jpeg, .webp and .bmp), opened on access.

    Args:
        root: The folder. Labeled images lie in a folder of their class, `root/<class>/...`, at any depth.
        labelled: Whether the folders in `root` are classes; if not, all images below `root` are read without classes.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no images, or labeled images lie outside the folders of classes.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> from sae_lightning.data.sources import ImageFolder
        >>> with TemporaryDirectory() as folder:
        ...     for name in ("cat", "dog"):
        ...         Path(folder, name).mkdir()
        ...         Image.new("L", (2, 2)).save(Path(folder, name, "1.png"))
        ...     images = ImageFolder(folder)
        ...     images.concept_names, images[1].document, images[1].concept
        (['cat', 'dog'], 'dog/1.png', 1)
    """

    def __init__(self, root: str, labelled: bool = True) -> None:
        self._root = Path(root)
        if not self._root.is_dir():
            raise FileNotFoundError(f"root must be a folder, but there is none at {root!r}")
        self._paths = _images_below(self._root)
        if not self._paths:
            raise ValueError(f"root must hold images ({', '.join(_ENDINGS)}), but {root!r} holds none")
        self.concept_names = []
        if labelled:
            relative = [path.relative_to(self._root) for path in self._paths]
            stray = next((path for path in relative if len(path.parts) == 1), None)
            if stray is not None:
                raise ValueError(
                    f"labelled must be false where images lie outside the folder of a class, but is true, and "
                    f"{str(stray)!r} lies in {root!r} itself"
                )
            classes = [path.parts[0] for path in relative]
            self.concept_names = sorted(set(classes))
            label = {name: i for i, name in enumerate(self.concept_names)}
            self._concepts = [label[name] for name in classes]
        else:
            self._concepts = [-1] * len(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> ImageExample:
        from PIL import Image

        path = self._paths[index]
        document = path.relative_to(self._root).as_posix()
        try:
            with Image.open(path) as file:
                return ImageExample(document, as_gray_or_rgb(file), self._concepts[index])
        except Exception as error:  # damaged files raise many types of errors, decompression bombs one of PIL's
            raise UnreadableError(os.fspath(path), str(error) or type(error).__name__) from error


class HuggingFaceImages(Source[ImageExample]):
    """Images in a dataset of the Hugging Face hub, or in a folder written by `save_to_disk`; needs `datasets`.

    Code that comes with a dataset is never executed.

    Args:
        name: Name of the dataset on the hub, or a folder.
        image_column: Column of the images.
        label_column: Column of their classes, of type ClassLabel; None for unlabeled images.
        split: Name of the split.
        revision: Commit, tag or branch on the hub; None takes the newest.
        config: Name of the dataset's configuration; None if there is just one.

    Raises:
        ValueError: If `datasets` is missing, the dataset cannot be loaded, or it lacks the split, a column or classes.
    """

    def __init__(
        self,
        name: str,
        image_column: str = "image",
        label_column: str | None = None,
        split: str = "train",
        revision: str | None = None,
        config: str | None = None,
    ) -> None:
        loaded = _load(name, split, revision, config)
        columns = [image_column] if label_column is None else [image_column, label_column]
        for argument, column in zip(("image_column", "label_column"), columns, strict=False):
            if column not in loaded.column_names:
                raise ValueError(f"{argument} must be one of {loaded.column_names} in {name!r}, but is {column!r}")
        kind = type(loaded.features[image_column]).__name__
        if kind != "Image":
            raise ValueError(f"image_column must hold images, but {image_column!r} of {name!r} is of type {kind}")
        self.concept_names = []
        if label_column is not None:
            feature = loaded.features[label_column]
            if type(feature).__name__ != "ClassLabel":
                raise ValueError(
                    f"label_column must be of type ClassLabel (see class_encode_column), but {label_column!r} of "
                    f"{name!r} is {feature}"
                )
            self.concept_names = list(feature.names)
        self._dataset = loaded.select_columns(columns)
        self._columns = image_column, label_column
        self._name = f"{name}/{split}"

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> ImageExample:
        if not 0 <= index < len(self):
            raise IndexError(f"index must lie between 0 and {len(self) - 1}, but is {index}")
        document = f"{self._name}#{index}"
        image_column, label_column = self._columns
        try:
            row = self._dataset[index]
            if row[image_column] is None:
                raise ValueError("it is missing")
            image = as_gray_or_rgb(row[image_column])
        except Exception as error:  # as in ImageFolder
            raise UnreadableError(document, str(error) or type(error).__name__) from error
        label = None if label_column is None else row[label_column]
        return ImageExample(document, image, -1 if label is None else int(label))


def _load(name: str, split: str, revision: str | None, config: str | None) -> Any:
    """Load one split of a dataset with random access."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"HuggingFaceImages needs the package datasets (pip install datasets): {error}") from error
    folder = Path(name)
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            found = datasets.load_from_disk(name)
        else:
            # version 4 can no longer execute code, and removed the argument
            safe = {"trust_remote_code": False} if int(datasets.__version__.partition(".")[0]) < 4 else {}
            return datasets.load_dataset(name, config, split=split, revision=revision, **safe)
    except Exception as error:  # network, names and formats raise many types of errors
        raise ValueError(f"dataset {name!r} cannot be loaded: {error}") from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise ValueError(f"split must be one of {list(found)} in {name!r}, but is {split!r}")
        return found[split]
    return found
