"""Images as training data of a vision model."""

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.utils.data import Dataset

from sae_lightning.data.datamodule import SPLIT_SEEDS, SeededDataModule, Split, require_distinct
from sae_lightning.data.images.views import ImageBatch, RandomViews, ViewBatch
from sae_lightning.data.loading import ActivationLoader, BatchIndices, BatchSequence
from sae_lightning.data.seeding import seeded_generator
from sae_lightning.data.sources import IdxImages, ImageExample, Source, UnreadableError

if TYPE_CHECKING:
    from PIL.Image import Image

_ORDER = 1000  # separates the random streams of the order from those of the views


class ImageDataset(Dataset[ImageBatch]):
    """Images and their classes in memory, indexed by a tensor of positions: an item is a whole batch.

    Args:
        images: uint8 `(n, channels, height, width)`.
        concepts: int64 `(n,)`, -1 for none.
    """

    def __init__(self, images: Tensor, concepts: Tensor) -> None:
        self.images = images
        self.concepts = concepts

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> ImageBatch:
        return ImageBatch(self.images[index], self.concepts[index])


class ViewStream(Dataset[ViewBatch]):
    """Endless sequence of batches of views, indexed by (step, epoch, first image in the epoch's order).

    Each image is shown once per epoch. Its position depends on `(seed, epoch)` only, and its views on
    `(seed, rank, step)`, so that an interruption changes neither.

    Args:
        images: uint8 `(n, channels, height, width)`.
        views: Draws views.
        batch_size: Images per batch and rank.
        seed: Seed of order and views.
        rank: Rank of this process.
        n_ranks: Number of processes.
    """

    def __init__(self, images: Tensor, views: RandomViews, batch_size: int, seed: int, rank: int, n_ranks: int) -> None:
        self.images = images
        self.views = views
        self.per_step = batch_size * n_ranks
        self.seed = seed
        self.rank = rank
        self.n_ranks = n_ranks
        self._order: tuple[int, Tensor] | None = None

    def __getitem__(self, place: tuple[int, int, int]) -> ViewBatch:
        step, epoch, first = place
        if self._order is None or self._order[0] != epoch:
            order = torch.randperm(len(self.images), generator=seeded_generator(self.seed, _ORDER, epoch))
            self._order = epoch, order
        chosen = self._order[1][first : first + self.per_step][self.rank :: self.n_ranks]
        generator = seeded_generator(self.seed, SPLIT_SEEDS["train"], self.rank, step)
        return self.views.pairs(self.images[chosen], generator)


class ViewSteps(BatchSequence):
    """Sampler of the indices of a ViewStream: step, epoch, and first image in the epoch's order.

    Args:
        steps_per_epoch: Batches per epoch, at least 1.
        per_step: Images per step, over all processes.

    Example:
        >>> from sae_lightning.data.images.datamodule import ViewSteps
        >>> list(ViewSteps(steps_per_epoch=2, per_step=8))
        [(0, 0, 0), (1, 0, 8)]
    """

    def __init__(self, steps_per_epoch: int, per_step: int) -> None:
        super().__init__(per_step)
        self._steps_per_epoch = steps_per_epoch

    def __len__(self) -> int:
        return self._steps_per_epoch

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        for position in range(self.position, self.position + len(self)):
            yield position, *self.place(position)


class HeldOutViews(Dataset[ViewBatch]):
    """Fixed views of held-out images, indexed by a tensor of positions: an item is a whole batch.

    Views are drawn for groups of consecutive images, so that the views of an image depend on its position but not on
    the number of processes.

    Args:
        images: uint8 `(n, channels, height, width)`.
        views: Draws views.
        seed: Seed of the views.
        split: The split that the images belong to.
        group_size: Images per group, at least 1.
    """

    def __init__(self, images: Tensor, views: RandomViews, seed: int, split: Split, group_size: int) -> None:
        self.images = images
        self.views = views
        self.seed = seed
        self.split = split
        self.group_size = group_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor) -> ViewBatch:
        shape = self.images.shape[1:]
        views, images, seed = [torch.empty(2, 0, *shape)], [torch.empty(0, *shape)], 0  # a rank's share may be empty
        groups = index // self.group_size
        for group in sorted(set(groups.tolist())):
            first = group * self.group_size
            generator = seeded_generator(self.seed, SPLIT_SEEDS[self.split], first)
            whole = self.views.pairs(self.images[first : first + self.group_size], generator)
            chosen = index[groups == group] - first
            views.append(whole.views.view(2, -1, *shape)[:, chosen])
            images.append(whole.images[chosen])
            seed = whole.seed
        return ViewBatch(torch.cat(views, 1).flatten(0, 1), torch.cat(images), seed)


class ImageDataModule(SeededDataModule):
    """Images for a vision model: random views in training, validation and test, and the images in prediction.

    All images are read into memory as uint8. Classes are used for reports only; batches of views do not hold them.

    Args:
        folder: Folder with the four IDX files of MNIST or Fashion-MNIST (`train-images-idx3-ubyte`,
            `train-labels-idx1-ubyte`, `t10k-...`, plain or `.gz`); None if `train` is given.
        train: Source of the training and validation images.
        test: Source of the test images; None takes `n_test` images of the training source.
        concept_names: Names of the classes of `folder`, in the order of their labels; None numbers them.
        image_size: Height and width to which images are resized; None takes the height of the first image.
        channels: 1 for grayscale or 3 for RGB; None takes those of the first image.
        n_val: Number of validation images, taken from the training source.
        n_test: Number of test images, taken from the training source if `test` is None.
        crop: Minimum fraction of an image's area that a view shows, above 0 and at most 1.
        flip: Probability that a view is mirrored, between 0 and 1.
        jitter: Maximum deviation of a view's brightness and contrast factors from 1, at least 0 and below 1.
        batch_size: Images per step and process, at least 1.
        eval_batch_size: Images per step and process in validation, test and prediction, at least 1.
        seed: Seed of splits, order and views; None takes the global seed.

    Attributes:
        image_size: Height and width of the images.
        channels: Channels of the images.
        concept_names: Names of the classes; empty for unlabeled images.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If an argument is out of range, a file is damaged, or `train` and `test` have different classes.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from PIL import Image
        >>> from sae_lightning import ImageDataModule
        >>> from sae_lightning.data.sources import ImageFolder
        >>> with TemporaryDirectory() as folder:
        ...     for i in range(6):
        ...         Image.new("L", (4, 4), i).save(Path(folder, f"{i}.png"))
        ...     source = ImageFolder(folder, labelled=False)
        ...     data = ImageDataModule(train=source, n_val=1, n_test=1, batch_size=2, seed=0)
        ...     next(iter(data.train_dataloader())).views.shape  # two views of two images
        torch.Size([4, 1, 4, 4])
    """

    def __init__(
        self,
        folder: str | None = None,
        train: Source[ImageExample] | None = None,
        test: Source[ImageExample] | None = None,
        concept_names: list[str] | None = None,
        image_size: int | None = None,
        channels: int | None = None,
        n_val: int = 5_000,
        n_test: int = 5_000,
        crop: float = 0.85,
        flip: float = 0.5,
        jitter: float = 0.4,
        batch_size: int = 128,
        eval_batch_size: int = 1_000,
        seed: int | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, seed)
        sizes = {"n_val": n_val, "n_test": n_test, "image_size": image_size}
        for name, value in sizes.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        if channels not in (None, 1, 3):
            raise ValueError(f"channels must be 1 or 3, but is {channels}")
        if (folder is None) == (train is None):
            raise ValueError(f"one of folder and train must be given, but they are {folder!r} and {train!r}")
        if folder is None:
            if concept_names is not None:
                raise ValueError(
                    f"concept_names must be None for a source, which knows its own, but is {concept_names}"
                )
            assert train is not None
        else:
            if test is not None:
                raise ValueError("test must be None where folder is given, which holds test images, but is given")
            train, test = (_mnist_like(Path(folder), prefix, concept_names) for prefix in ("train", "t10k"))
        self.concept_names = list(train.concept_names)
        require_distinct(self.concept_names)
        if test is not None and list(test.concept_names) != self.concept_names:
            raise ValueError(
                f"train and test must have the same classes, but have {self.concept_names} and {test.concept_names}"
            )
        self.views = RandomViews(crop, flip, jitter)
        self._sources = train, test
        first = _first_readable(train)
        self.image_size = image_size or first.height
        self.channels = channels or (1 if first.mode == "L" else 3)
        self._n_held_out = n_val, n_test
        self._splits: dict[Split, ImageDataset] = {}

    def split(self, split: Split) -> ImageDataset:
        """Return the images of one split; the first call reads all images.

        Raises:
            ValueError: If no image can be read, or a split would be empty.
        """
        if not self._splits:
            self._read()
        return self._splits[split]

    def _read(self) -> None:
        train, test = self._sources
        images, concepts, documents = _read_all(train, self.image_size, self.channels)
        n_val, n_test = self._n_held_out
        parts: dict[Split, int] = {"val": n_val} if test is not None else {"val": n_val, "test": n_test}
        # images of the same name must belong to the same split
        names = {name: i for i, name in enumerate(dict.fromkeys(documents))}
        place = torch.randperm(len(names), generator=seeded_generator(self.seed))
        groups = place[torch.tensor([names[name] for name in documents])]
        order = groups.argsort(stable=True)
        groups = groups[order]
        n_train = len(images) - sum(parts.values())
        if n_train < 1:
            raise ValueError(
                f"every split must hold an image, but {len(images)} images give {n_train} for training with {parts}"
            )
        end = 0
        for split, n in parts.items():
            begin, end = end, end + n
            while end < len(images) - 1 and groups[end] == groups[end - 1]:
                end += 1
            self._splits[split] = ImageDataset(images[order[begin:end]], concepts[order[begin:end]])
        self._splits["train"] = ImageDataset(images[order[end:]], concepts[order[end:]])
        if test is not None:
            self._splits["test"] = ImageDataset(*_read_all(test, self.image_size, self.channels)[:2])

    def train_dataloader(self) -> ActivationLoader:
        """Return a loader of views of the training images; the incomplete last batch of an epoch is dropped."""
        images = self.split("train").images
        steps = self._steps_per_epoch(len(images))
        stream = ViewStream(images, self.views, self.batch_size, self.seed, *self._processes())
        return ActivationLoader.of(stream, ViewSteps(steps, stream.per_step), torch.cuda.is_available())

    def val_dataloader(self) -> ActivationLoader:
        """Return a loader of two fixed views of every validation image."""
        return self._held_out("val")

    def test_dataloader(self) -> ActivationLoader:
        """Return a loader of two fixed views of every test image."""
        return self._held_out("test")

    def predict_dataloader(self) -> ActivationLoader:
        """Return a loader of all test images, in stored order."""
        return self._loader(self.split("test"))

    def _held_out(self, split: Split) -> ActivationLoader:
        return self._loader(HeldOutViews(self.split(split).images, self.views, self.seed, split, self.eval_batch_size))

    def _loader(self, dataset: ImageDataset | HeldOutViews) -> ActivationLoader:
        indices = BatchIndices(len(dataset), self.eval_batch_size, *self._processes(), None, drop_last=False)
        return ActivationLoader.of(dataset, indices, torch.cuda.is_available())


def _mnist_like(folder: Path, prefix: str, concept_names: list[str] | None) -> IdxImages:
    """Open the training (`train`) or test images (`t10k`) in a folder of IDX files."""
    paths: dict[str, str] = {}
    for argument, name in (("images", f"{prefix}-images-idx3-ubyte"), ("labels", f"{prefix}-labels-idx1-ubyte")):
        plain, packed = folder / name, folder / f"{name}.gz"
        if not plain.is_file() and not packed.is_file():
            raise FileNotFoundError(f"folder must hold {name} or {name}.gz, but {str(folder)!r} does not")
        paths[argument] = str(plain if plain.is_file() else packed)
    return IdxImages(**paths, concept_names=concept_names)


def _first_readable(source: Source[ImageExample]) -> "Image":
    for i in range(len(source)):
        try:
            return source[i].image
        except UnreadableError:
            continue
    raise ValueError(f"a source must hold an image that can be read, but none of its {len(source)} can")


def _read_all(source: Source[ImageExample], size: int, channels: int) -> tuple[Tensor, Tensor, Sequence[str]]:
    """Read and resize all readable images; return them, `(n, channels, size, size)`, their classes and their names."""
    if isinstance(source, IdxImages) and source.pixels.shape[1:] == (size, size) and channels == 1:
        return source.pixels[:, None], source.concepts, [str(i) for i in range(len(source))]
    import numpy as np

    images, concepts, documents, unreadable = [], [], [], []
    for i in range(len(source)):
        try:
            document, image, concept = source[i]
        except UnreadableError as error:
            unreadable.append(error)
            continue
        scaled = image.convert("L" if channels == 1 else "RGB")
        if scaled.size != (size, size):
            scaled = scaled.resize((size, size))
        images.append(torch.from_numpy(np.array(scaled)).view(size, size, channels).permute(2, 0, 1))
        concepts.append(concept)
        documents.append(document)
    if not images:
        raise ValueError(f"a source must hold an image that can be read, but none of its {len(source)} can")
    if unreadable:
        warnings.warn(f"{len(unreadable)} of {len(source)} images are left out: {unreadable[0]}", stacklevel=2)
    return torch.stack(images), torch.tensor(concepts), documents
