"""What each latent fires on most: samples, and where they come from."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeGuard

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor, nn

from sae_lightning.callbacks.base import RunCallback, find
from sae_lightning.callbacks.data import HasContexts, data_of
from sae_lightning.callbacks.recovery import ConceptRecovery
from sae_lightning.data.batch import ActivationBatch
from sae_lightning.data.contexts import ImageContext, TextContext
from sae_lightning.metrics import TopExamples
from sae_lightning.metrics.functional import TopExamplesResult
from sae_lightning.modules.module import SAEModule
from sae_lightning.plotting import example_images

PER_CONCEPT = 5
"""How many of a concept's best latents are shown before those that merely fire often."""


class Meaning(NamedTuple):
    """What one SAE's latents fire on."""

    top: TopExamplesResult
    """Of every latent, on the CPU; indices are positions in the stored order of the test split."""
    shown: list[int]
    """The latents to show, the most important first."""


def latents_to_show(fired: Tensor, f1: Tensor | None, max_latents: int) -> list[int]:
    """Choose latents: each concept's best one, each one's second best and so on to the fifth, then by firings.

    A latent that detects no concept is no concept's best one, and a dead one is never shown.

    Args:
        fired: Number of firings, `(d_sae,)`.
        f1: F1 of each latent for each concept, `(n_concepts, d_sae)`; None for unlabeled data.
        max_latents: How many to choose at most.

    Example:
        >>> import torch
        >>> fired = torch.tensor([5, 3, 9, 0])
        >>> latents_to_show(fired, torch.tensor([[0.9, 0.1, 0.0, 0.0]]), max_latents=3)
        [0, 1, 2]
    """
    chosen: list[int] = []
    if f1 is not None and f1.numel():
        known = f1.nan_to_num(0.0)  # a concept without samples has no best latent
        scores, best = known.sort(dim=1, descending=True, stable=True)
        k = min(PER_CONCEPT, f1.shape[1])
        chosen = best[:, :k].T[scores[:, :k].T > 0].tolist()  # rank by rank, concept by concept
    by_firings = fired.argsort(descending=True, stable=True)
    chosen += by_firings[fired[by_firings] > 0].tolist()
    return list(dict.fromkeys(latent for latent in chosen if fired[latent] > 0))[:max_latents]


class LatentMeaning(RunCallback):
    """Collects in test, for every latent, the samples on which its code is largest, its frequency and its mean code.

    `results` holds the outcome of each SAE by name. Samples are known by the `positions` of their batches; where
    these have none, as those of a plain loader, nothing is collected, and a message says so.

    Where the data know where their activations come from (a method `contexts`), the first few latents go to TensorBoard
    under `latents/<number>`: texts with the token in bold, or images with the patch in a rectangle. The page of the run
    shows more of them.

    Which latents are shown: each concept's five best ones by F1 first, those of all concepts in turn, then the ones
    that fire most often. Unlabeled data: the ones that fire most often.

    Args:
        enabled: Whether to collect anything.
        n_examples: Samples per latent, at least 1.
        max_latents: Latents of each SAE that are shown, at least 1.
        tensorboard_latents: How many of them go to TensorBoard.

    Raises:
        ValueError: If an argument is out of range.
    """

    key = "meaning"
    serves = SAEModule
    uses = (ConceptRecovery,)

    def __init__(
        self, enabled: bool = True, n_examples: int = 8, max_latents: int = 200, tensorboard_latents: int = 20
    ) -> None:
        limits = {"n_examples": (n_examples, 1), "max_latents": (max_latents, 1)}
        limits["tensorboard_latents"] = (tensorboard_latents, 0)
        for name, (value, least) in limits.items():
            if value < least:
                raise ValueError(f"{name} must be at least {least}, but is {value}")
        self.enabled = enabled
        self.n_examples = n_examples
        self.max_latents = max_latents
        self.tensorboard_latents = tensorboard_latents
        self.results: dict[str, Meaning] = {}
        self._on = False

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Register the metrics as submodules, before the module moves to its device."""
        super().setup(trainer, pl_module, stage)
        assert isinstance(pl_module, SAEModule)
        self.results = {}
        self._on = self.enabled and stage == "test"
        if self._on:
            pl_module.meaning_metrics = nn.ModuleList(
                TopExamples(sae.d_sae, self.n_examples) for sae in pl_module.saes().values()
            )

    def _metrics(self, pl_module: pl.LightningModule) -> dict[str, TopExamples]:
        assert isinstance(pl_module, SAEModule)
        return dict(zip(pl_module.saes(), pl_module.meaning_metrics, strict=True))  # type: ignore[arg-type]

    def on_test_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Reset the metrics."""
        if self._on:
            for metric in self._metrics(pl_module).values():
                metric.reset()

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: ActivationBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Take in the codes of a batch."""
        if not self._on:
            return
        if batch.positions is None:
            self._on = False
            rank_zero_info(
                "No examples of latents are collected: the batches of the test do not say which samples they hold "
                "(ActivationBatch.positions)."
            )
            return
        if len(batch.activations) == 0:  # a rank's share of the last batch may be empty
            return
        for name, metric in self._metrics(pl_module).items():
            metric.update(outputs[name].out.codes, batch.positions)

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Combine all processes, choose the latents to show, and write to TensorBoard on rank zero."""
        if not self._on:
            return
        recovery = find(trainer, ConceptRecovery)
        for name, metric in self._metrics(pl_module).items():
            top = TopExamplesResult(*(field.cpu() for field in metric.compute()))
            measured = recovery.results.get(name) if recovery is not None else None
            f1 = measured.f1.f1.cpu() if measured is not None and measured.f1 is not None else None
            self.results[name] = Meaning(top, latents_to_show(top.fired, f1, self.max_latents))
        if trainer.is_global_zero:
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        data = data_of(trainer)
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not knows_contexts(data):
            return
        for name, (top, shown) in self.results.items():
            for latent in shown[: self.tensorboard_latents]:
                positions = top.indices[latent][top.indices[latent] >= 0].tolist()
                contexts = data.contexts("test", positions)
                codes = top.values[latent].tolist()[: len(positions)]
                tag = f"{name}/latents/{latent}" if name else f"latents/{latent}"
                texts = [context for context in contexts if isinstance(context, TextContext)]
                images = [context for context in contexts if isinstance(context, ImageContext)]
                for logger in loggers:
                    writer, step = logger.experiment, trainer.global_step
                    if images:
                        captions = [f"{code:.3g}" for code in codes]
                        pixels, boxes = [image for image, _ in images], [box for _, box in images]
                        figure = example_images(pixels, boxes, captions, f"Latent {latent}")
                        writer.add_figure(tag, figure, global_step=step, close=True)
                    else:
                        writer.add_text(tag, as_markdown(texts, codes), global_step=step)


def as_markdown(texts: Sequence[TextContext], codes: Sequence[float]) -> str:
    """A table of codes and texts with the token in bold.

    Example:
        >>> print(as_markdown([TextContext("the ", "cat", " sat")], [1.5]))
        | code | text |
        |---|---|
        | 1.5 | the **cat** sat |
    """
    rows = ["| code | text |", "|---|---|"]
    for (before, token, after), code in zip(texts, codes, strict=True):
        core = token.strip()
        # no mark of Markdown may touch the space around a word
        lead, tail = token.partition(core)[::2] if core else ("", "")
        word = f"**{_plain(core)}**" if core else ("**␣**" if token else "")
        rows.append(f"| {code:.3g} | {_plain(before + lead)}{word}{_plain(tail + after)} |")
    return "\n".join(rows)


def _plain(text: str) -> str:
    """A text in one line, without a meaning in Markdown or HTML."""
    text = re.sub(r"\s+", " ", text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]()#+\-.!|~])", r"\\\1", text)


def knows_contexts(data: object) -> TypeGuard[HasContexts]:
    """Whether data can tell where their activations come from, which is tried; a warning says why not."""
    if not isinstance(data, HasContexts):
        return False
    try:
        data.contexts("test", [0])
    except (ValueError, OSError) as error:  # such as texts that have been moved away since the harvest
        rank_zero_warn(f"no examples of latents are shown: {error}")
        return False
    return True
