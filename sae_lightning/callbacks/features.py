"""Callback that measures how well a vision model's features predict the classes of images."""

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
_SHARPNESS = 10.0  # inverse temperature of the weights of neighbors


class FeaturesReport(RunCallback):
    """Logs the accuracy of classifiers on a vision model's features: the class token after the last norm.

    In validation and test on labeled images, it logs the accuracy on held-out images of

    - `knn_accuracy`: a nearest-neighbor classifier with labeled training images;
    - `linear_accuracy`: a linear classifier fitted to the same training images.

    The vision model itself is never trained on labels.

    Args:
        n_labelled: Maximum number of labeled training images, at least 1.
        k: Number of neighbors that vote, at least 1.

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
        # the same images in every epoch and on every rank
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
    """Return features and classes of the labeled images, on the CPU."""
    labeled = images.concepts >= 0
    passes = torch.split(images.images[labeled], _IMAGES_PER_PASS)
    parts = [model(part.to(model.device)).float().cpu() for part in passes]
    return torch.cat(parts) if parts else torch.empty(0), images.concepts[labeled]


def knn_accuracy(known: Tensor, classes: Tensor, asked: Tensor, truth: Tensor, n_classes: int, k: int) -> float:
    """Return the accuracy of a k-nearest-neighbor classifier.

    Neighbors are the samples of highest cosine similarity `s`, after subtracting the mean of the known features. Their
    votes have the weight `exp(10 s)`.

    Args:
        known: Features of the training samples, `(n, width)`.
        classes: Classes of the training samples, int64 `(n,)`.
        asked: Features of the samples to classify, `(m, width)`.
        truth: True classes of these samples, int64 `(m,)`.
        n_classes: Number of classes.
        k: Number of neighbors that vote.

    Example:
        >>> import torch
        >>> from sae_lightning.callbacks.features import knn_accuracy
        >>> known, classes = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
        >>> knn_accuracy(known, classes, torch.tensor([[2.0], [-3.0]]), torch.tensor([0, 0]), n_classes=2, k=1)
        0.5
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
    """Return the accuracy of a linear classifier on standardized features.

    Args:
        known: Features of the training samples, `(n, width)`.
        classes: Classes of the training samples, int64 `(n,)`.
        asked: Features of the samples to classify, `(m, width)`.
        truth: True classes of these samples, int64 `(m,)`.
        n_classes: Number of classes.

    Example:
        >>> import torch
        >>> from sae_lightning.callbacks.features import linear_accuracy
        >>> known, classes = torch.tensor([[1.0], [-1.0]]), torch.tensor([0, 1])
        >>> linear_accuracy(known, classes, torch.tensor([[2.0], [-3.0]]), torch.tensor([0, 0]), n_classes=2)
        0.5
    """
    mean, scale = known.mean(0), known.std(0, correction=0).clamp_min(1e-6)
    known, asked = (known - mean) / scale, (asked - mean) / scale
    # Lightning evaluates in inference mode, which disables gradients
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
