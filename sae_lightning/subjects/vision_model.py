"""A vision model whose activations are to be explained."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sae_lightning.data.images.views import ImageBatch, ViewBatch
from sae_lightning.modules.allocator import keep_freed_memory
from sae_lightning.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from sae_lightning.modules.run import RunModule
from sae_lightning.nn.parts import require_positive
from sae_lightning.run.checkpoint import CHECKPOINT_KEY
from sae_lightning.subjects.contrastive import ProjectionHead, contrastive_loss, random_subsets
from sae_lightning.subjects.vision_transformer import VisionTransformer, standardized


def adamw(params: Any) -> Optimizer:
    """AdamW with learning rate 2e-3 and weight decay 0.05."""
    return torch.optim.AdamW(params, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True)


class VisionModel(RunModule):
    r"""A vision transformer that learns from images without labels: by telling views of one image from all others.

    The class token `c_i` of each view, projected to `z_i`, is compared with those of all views in the batch, of which
    `p(i)` is the other view of the same image; and a small decoder `d` makes the whole image `x_i` of it again:

    $$ \mathrm{loss} = - \mathrm{mean}_i \log
       \frac{\exp(\cos(z_i, z_{p(i)}) / \tau)}{\sum_{j \neq i} \exp(\cos(z_i, z_j) / \tau)}
       + \omega\, \mathrm{mean}_{i, pixels}\, (d(c_i) - x_i)^2 $$

    In training the model reads a random part of each view's patches, which is both faster and harder, and several
    processes compare within their own batches only. Validation and test compare within groups of `data.eval_batch_size`
    consecutive images, however many processes share them.

    Args:
        image_size: Height and width of the images; on the command line it is linked to the data.
        channels: Their channels; on the command line it is linked to the data.
        patch_size: Height and width of a patch in pixels, at least 1; it must divide `image_size`.
        width: Size of the residual stream; a multiple of `n_heads`.
        n_layers: Number of blocks, at least 1.
        n_heads: Attention heads of a block, at least 1.
        keep: Share of its patches that the model reads of a view in training, above 0 and at most 1.
        hidden: Size of the hidden layer of projection and decoder, at least 1.
        projected: Size of the projection, at least 1.
        temperature: `tau`, above 0.
        reconstruction: `omega`, at least 0; the image has about variance 1.
        optimizer: Makes the optimizer from the parameters.
        lr_scheduler: Makes the learning-rate schedule, which steps once per training step.

    Raises:
        ValueError: If an argument is out of range.

    Source: Chen, Kornblith, Norouzi and Hinton (2020), arXiv 2002.05709; patches left out as by Li et al. (2023),
    "Scaling Language-Image Pre-training via Masking", arXiv 2212.00794.
    """

    undescribed = frozenset({"optimizer", "lr_scheduler"})

    def __init__(
        self,
        image_size: int,
        channels: int = 1,
        patch_size: int = 7,
        width: int = 128,
        n_layers: int = 4,
        n_heads: int = 4,
        keep: float = 0.5,
        hidden: int = 256,
        projected: int = 64,
        temperature: float = 0.2,
        reconstruction: float = 2.5,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        require_positive("hidden", hidden)
        require_positive("projected", projected)
        if not 0 < keep <= 1:
            raise ValueError(f"keep must lie above 0 and be at most 1, but is {keep}")
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, but is {temperature}")
        if not reconstruction >= 0:
            raise ValueError(f"reconstruction must be at least 0, but is {reconstruction}")
        self.transformer = VisionTransformer(image_size, channels, patch_size, width, n_layers, n_heads)
        self.head = ProjectionHead(width, hidden, projected)
        n_pixels = channels * image_size * image_size
        self.decoder: nn.Module = nn.Identity()  # where nothing is decoded: weights without gradients upset DDP
        if reconstruction:
            self.decoder = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, n_pixels))
        self.reconstruction = reconstruction
        n_patches = self.transformer.embed.n_patches
        self.n_kept = max(1, round(keep * n_patches))
        self.temperature = temperature
        self._make_optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self.save_hyperparameters(self.describe()["init_args"])

    def setup(self, stage: str) -> None:
        """Check that data and model fit.

        Raises:
            ValueError: If the images are of another size.
        """
        own = self.transformer.embed
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for name, value in {"image_size": own.image_size, "channels": own.channels}.items():
            given = getattr(data, name, value)
            if given != value:
                raise ValueError(f"model.{name} must equal data.{name}, but they are {value} and {given}")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of a model that reads other images.

        Raises:
            ValueError: If the checkpoint was made by another class, or for images of another size.
        """
        super().on_load_checkpoint(checkpoint)
        own = self.init_args
        for name, value in checkpoint.get(CHECKPOINT_KEY, {}).get("init_args", {}).items():
            if name in ("image_size", "channels") and value != own[name]:
                raise ValueError(f"the checkpoint must be of {name} = {own[name]}, as the data are, but is of {value}")

    def on_fit_start(self) -> None:
        """Keep freed memory: batches of the same size come again and again."""
        if self.device.type == "cpu":
            keep_freed_memory()

    def forward(self, images: Tensor) -> Tensor:
        """Return the class tokens after the last norm, `(n, width)`."""
        features: Tensor = self.transformer(images)[:, 0]
        return features

    def on_validation_start(self) -> None:
        """Let all processes evaluate one model: batch normalisation has its own statistics in each of them."""
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _loss(self, batch: ViewBatch, n_kept: int) -> Tensor:
        """The loss where `n_kept` patches of each view are read."""
        n_patches = self.transformer.embed.n_patches
        keep = None
        if n_kept < n_patches:
            generator = torch.Generator().manual_seed(int(batch.seed))
            keep = random_subsets(len(batch.views), n_patches, n_kept, generator).to(batch.views.device)
        tokens = self.transformer(batch.views, keep)[:, 0]
        loss = contrastive_loss(self.head(tokens).float(), self.temperature)
        if not self.reconstruction:
            return loss
        return loss + self.reconstruction * self._reconstruction_errors(tokens, batch.images).mean()

    def _reconstruction_errors(self, tokens: Tensor, images: Tensor) -> Tensor:
        """Mean squared error over the pixels of each view's image, `(2n,)`."""
        whole = standardized(images).flatten(1).repeat(2, 1)
        decoded: Tensor = self.decoder(tokens).float()
        return (decoded - whole).square().mean(1)

    def training_step(self, batch: ViewBatch, batch_idx: int) -> Tensor:
        """Return the loss."""
        batch = ViewBatch(*batch)
        loss = self._loss(batch, self.n_kept)
        n = len(batch.views) // 2
        self.samples_seen += n * self.trainer.world_size
        if self.is_logging_step():
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=n)
            self.log("train/lr", float(self.trainer.optimizers[0].param_groups[0]["lr"]))
        return loss

    def validation_step(self, batch: ViewBatch, batch_idx: int) -> None:
        """Log the loss on whole views."""
        self._evaluate(batch, "val")

    def test_step(self, batch: ViewBatch, batch_idx: int) -> None:
        """Log the loss on whole views."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: ViewBatch, stage: str) -> None:
        """Log the loss of a batch that the processes share: each compares the views of all of them."""
        batch = ViewBatch(*batch)
        n = len(batch.images)  # 0 where a rank's share of the last batch is empty
        size = self.init_args["projected"]
        pairs, errors = batch.views.new_zeros(n, 2, size), batch.views.new_zeros(n, 1)
        if n:
            tokens = self.transformer(batch.views)[:, 0]
            pairs = self.head(tokens).float().view(2, n, size).transpose(0, 1)
            if self.reconstruction:
                errors = self._reconstruction_errors(tokens, batch.images).view(2, n).mean(0)[:, None]
        found = self.interleaved(torch.cat([pairs.flatten(1), errors], 1))
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for group in torch.split(found, getattr(data, "eval_batch_size", len(found))):
            projected = group[:, :-1].view(-1, 2, size).transpose(0, 1).flatten(0, 1)
            loss = contrastive_loss(projected, self.temperature) + self.reconstruction * group[:, -1].mean()
            self.log_mean(f"{stage}/loss", loss, len(group), prog_bar=True)

    def predict_step(self, batch: ImageBatch, batch_idx: int) -> Tensor:
        """Return the class tokens after the last norm."""
        features: Tensor = self(ImageBatch(*batch).images)
        return features

    def configure_optimizers(self) -> Any:
        """Optimizer and, where there is one, schedule, which steps with every training step."""
        optimizer, scheduler = self.make_optimizer()
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
