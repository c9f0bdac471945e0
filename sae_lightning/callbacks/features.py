"""What a vision model's features know of the images' classes, which it never saw."""

import lightning.pytorch as pl
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the usual name)

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.callbacks.data import HasImages, data_of
from sae_lightning.data.images.datamodule import ImageDataset
from sae_lightning.data.seeding import seeded_generator
from sae_lightning.subjects.vision_model import VisionModel

_IMAGES_PER_PASS = 1_000
_SHARPNESS = 10.0  # how much more a nearer neighbor counts


class FeaturesReport(RunCallback):
    """Tells classes by a vision model's features: the class token after the last norm.

    In validation and test of labelled images it logs the share of held-out images that are told right

    - `knn_accuracy`: by their nearest labelled neighbors among training images;
    - `linear_accuracy`: by a linear classifier that is fitted to the same training images.

    Labels are read here only, never in training.

    Args:
        n_labelled: Training images whose labels are used, at least 1; all where there are fewer.
        k: Neighbors that vote, at least 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    key = "features"
    serves = VisionModel

    def __init__(self, n_labelled: int = 10_000, k: int = 20) -> None:
        for name, value in {"n_labelled": n_labelled, "k": k}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value}")
        self.n_labelled = n_labelled
        self.k = k

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report on the validation images."""
        self._report(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report on the test images."""
        self._report(trainer, pl_module, "test")

    def _report(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        assert isinstance(pl_module, VisionModel)
        data = data_of(trainer)
        if not isinstance(data, HasImages) or not data.concept_names:
            return
        train = data.split("train")
        # the same images every time, and at every rank
        chosen = torch.randperm(len(train), generator=seeded_generator(0))[: self.n_labelled]
        known = _features(pl_module, ImageDataset(train.images[chosen], train.concepts[chosen]))
        asked = _features(pl_module, data.split("val" if stage == "val" else "test"))
        if not len(known[1]) or not len(asked[1]):
            return
        n_classes = len(data.concept_names)
        pl_module.log(f"{stage}/knn_accuracy", knn_accuracy(*known, *asked, n_classes, self.k), prog_bar=True)
        pl_module.log(f"{stage}/linear_accuracy", linear_accuracy(*known, *asked, n_classes))


@torch.no_grad()
def _features(model: VisionModel, images: ImageDataset) -> tuple[Tensor, Tensor]:
    """Features and classes of the labelled images, on the CPU."""
    labelled = images.concepts >= 0
    passes = torch.split(images.images[labelled], _IMAGES_PER_PASS)
    parts = [model(part.to(model.device)).float().cpu() for part in passes]
    return torch.cat(parts) if parts else torch.empty(0), images.concepts[labelled]


def knn_accuracy(known: Tensor, classes: Tensor, asked: Tensor, truth: Tensor, n_classes: int, k: int) -> float:
    """The share of samples whose nearest neighbors vote for the right class.

    Neighbours are those of highest cosine similarity `s`, after the mean of all known features has been taken off; a
    vote has the weight `exp(10 s)`.

    Args:
        known: Features of samples whose class is known, `(n, width)`.
        classes: Their classes, int64 `(n,)`.
        asked: Features of the samples that are asked for, `(m, width)`.
        truth: Their classes, int64 `(m,)`.
        n_classes: Number of classes.
        k: Neighbors that vote.
    """
    mean = known.mean(0)
    known, asked = F.normalize(known - mean, dim=1), F.normalize(asked - mean, dim=1)
    right = 0
    passes = (torch.split(samples, _IMAGES_PER_PASS) for samples in (asked, truth))
    for part, classes_of_part in zip(*passes, strict=True):
        similarity, neighbors = (part @ known.T).topk(min(k, len(known)), dim=1)
        votes = torch.zeros(len(part), n_classes)
        votes.scatter_add_(1, classes[neighbors], (_SHARPNESS * similarity).exp())
        right += int((votes.argmax(1) == classes_of_part).sum())
    return right / len(asked)


def linear_accuracy(known: Tensor, classes: Tensor, asked: Tensor, truth: Tensor, n_classes: int) -> float:
    """The share of samples that a linear classifier of standardized features, fitted to known ones, gets right.

    Args:
        known: Features of samples whose class is known, `(n, width)`.
        classes: Their classes, int64 `(n,)`.
        asked: Features of the samples that are asked for, `(m, width)`.
        truth: Their classes, int64 `(m,)`.
        n_classes: Number of classes.
    """
    mean, scale = known.mean(0), known.std(0, correction=0).clamp_min(1e-6)
    known, asked = (known - mean) / scale, (asked - mean) / scale
    # Lightning evaluates in inference mode, where nothing can be fitted
    with torch.inference_mode(False), torch.enable_grad():
        known, classes = known.clone(), classes.clone()
        weights = torch.zeros(known.shape[1], n_classes, requires_grad=True)
        bias = torch.zeros(n_classes, requires_grad=True)
        optimizer = torch.optim.LBFGS([weights, bias], max_iter=100, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimizer.zero_grad()
            value = F.cross_entropy(known @ weights + bias, classes) + 1e-4 * weights.square().sum()
            value.backward()  # type: ignore[no-untyped-call]
            return value

        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return float(((asked @ weights.detach() + bias.detach()).argmax(1) == truth).float().mean())
