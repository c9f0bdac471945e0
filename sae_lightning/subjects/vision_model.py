"""LightningModule that trains a vision transformer, whose activations an SAE can explain."""

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
    """Return AdamW with learning rate 2e-3 and weight decay 0.05."""
    return torch.optim.AdamW(params, lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05, fused=True)


class VisionModel(RunModule):
    r"""A vision transformer trained on images without labels, by contrasting views and reconstructing images.

    The class token `c_i` of each view is projected to `z_i`, which should be similar to `z_{p(i)}` of the other view of
    the same image and dissimilar to those of all other views in the batch. A small decoder `d` reconstructs the whole
    image `x_i` from `c_i`:

    $$ \mathrm{loss} = - \mathrm{mean}_i \log
       \frac{\exp(\cos(z_i, z_{p(i)}) / \tau)}{\sum_{j \neq i} \exp(\cos(z_i, z_j) / \tau)}
       + \omega\, \mathrm{mean}_{i, pixels}\, (d(c_i) - x_i)^2 $$

    In training, the model processes a random subset of each view's patches, which is faster and makes the task harder;
    each process contrasts the views of its own batch only. Validation and test contrast groups of
    `data.eval_batch_size` consecutive images, for any number of processes.

    Args:
        image_size: Height and width of the images; on the command line it is linked to the data.
        channels: Channels of the images; on the command line it is linked to the data.
        patch_size: Height and width of a patch in pixels, at least 1; it must divide `image_size`.
        width: Size of the residual stream; a multiple of `n_heads`.
        n_layers: Number of blocks, at least 1.
        n_heads: Attention heads per block, at least 1.
        keep: Fraction of each view's patches that the model processes in training, above 0 and at most 1.
        hidden: Size of the hidden layer of projection and decoder, at least 1.
        projected: Size of the projection, at least 1.
        temperature: `tau`, above 0.
        reconstruction: `omega`, at least 0; the pixels `x_i` have a variance of about 1.
        optimizer: Creates the optimizer from the parameters.
        lr_scheduler: Creates the learning-rate schedule, which steps once per training step.

    Raises:
        ValueError: If an argument is out of range.

    References:
        Chen, Kornblith, Norouzi and Hinton (2020), arXiv 2002.05709. Masking of patches: Li et al. (2023), "Scaling
        Language-Image Pre-training via Masking", arXiv 2212.00794.

    Example:
        >>> import torch
        >>> from sae_lightning import VisionModel
        >>> model = VisionModel(image_size=8, patch_size=4, width=16, n_layers=1, n_heads=2)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 16])
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
        self.decoder: nn.Module = nn.Identity()  # no unused weights if omega is 0: DDP fails without their gradients
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
        """Check that the data have images of the model's size and channels.

        Raises:
            ValueError: If they do not.
        """
        own = self.transformer.embed
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        for name, value in {"image_size": own.image_size, "channels": own.channels}.items():
            given = getattr(data, name, value)
            if given != value:
                raise ValueError(f"model.{name} must equal data.{name}, but they are {value} and {given}")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint for images of another size.

        Raises:
            ValueError: If the checkpoint is of another class, or for images of another size.
        """
        super().on_load_checkpoint(checkpoint)
        own = self.init_args
        for name, value in checkpoint.get(CHECKPOINT_KEY, {}).get("init_args", {}).items():
            if name in ("image_size", "channels") and value != own[name]:
                raise ValueError(f"the checkpoint must be of {name} = {own[name]}, as the data are, but is of {value}")

    def on_fit_start(self) -> None:
        """Let the allocator keep freed memory, because all batches have the same size."""
        if self.device.type == "cpu":
            keep_freed_memory()

    def forward(self, images: Tensor) -> Tensor:
        """Return the class tokens after the last norm, `(n, width)`."""
        features: Tensor = self.transformer(images)[:, 0]
        return features

    def on_validation_start(self) -> None:
        """Broadcast the batch statistics of rank 0, so that all processes evaluate the same model."""
        if self.trainer.world_size > 1:
            for buffer in self.buffers():
                torch.distributed.broadcast(buffer, 0)

    def _loss(self, batch: ViewBatch, n_kept: int) -> Tensor:
        """Return the loss with `n_kept` random patches of each view."""
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
        """Return the mean squared error over the pixels of each view's image, `(2n,)`."""
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
        """Log the loss with all patches."""
        self._evaluate(batch, "val")

    def test_step(self, batch: ViewBatch, batch_idx: int) -> None:
        """Log the loss with all patches."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: ViewBatch, stage: str) -> None:
        """Log the loss of a batch that is distributed over processes, contrasting the views of all of them."""
        batch = ViewBatch(*batch)
        n = len(batch.images)  # may be 0: a rank may have no image of the last batch
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
        """Return the optimizer and, if given, the schedule, which steps once per training step."""
        optimizer, scheduler = self.make_optimizer()
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
