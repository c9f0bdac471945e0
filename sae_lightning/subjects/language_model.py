"""LightningModule that trains a language model, whose activations an SAE can explain."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812  (the usual name)
from torch.optim import Optimizer

from sae_lightning.data.formal_language.grammar import N_SPECIAL, PAD, Grammar
from sae_lightning.data.formal_language.sentences import TokenBatch
from sae_lightning.modules.optimizers import LRSchedulerCallable, OptimizerCallable
from sae_lightning.modules.run import RunModule
from sae_lightning.subjects.transformer import Transformer


def adamw(params: Any) -> Optimizer:
    """Return AdamW with the authors' betas and weight decay, and learning rate 1e-3."""
    return torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-4, fused=True)


class LanguageModel(RunModule):
    r"""A decoder-only transformer trained on sentences of a grammar.

    $$ \mathrm{loss} = - \mathrm{mean}_{tokens} \log p(w_t | w_{<t}) $$

    in nats, over all words and ends of sentences. The default sizes are the authors'.

    Args:
        grammar_text: Rules of the grammar; on the command line it is linked to the data.
        width: Size of the residual stream; a multiple of `n_heads`.
        n_layers: Number of blocks, at least 1.
        n_heads: Attention heads per block, at least 1.
        n_positions: Maximum number of words of a sentence plus 1, at least 2.
        optimizer: Creates the optimizer from the parameters.
        lr_scheduler: Creates the learning-rate schedule, which steps once per training step.

    Raises:
        ValueError: If a size is out of range or the grammar is not valid.

    References:
        Hindupur, Lubana, Fel and Ba (2025), arXiv 2503.01822, section on formal languages.

    Example:
        >>> from sae_lightning import LanguageModel
        >>> model = LanguageModel("S -> 'a' S [0.5] | 'b' [0.5]", width=8)
        >>> model(model.grammar.encode("a a b")[None]).shape  # two words and three special tokens
        torch.Size([1, 3, 5])
    """

    undescribed = frozenset({"optimizer", "lr_scheduler"})

    def __init__(
        self,
        grammar_text: str,
        width: int = 128,
        n_layers: int = 2,
        n_heads: int = 2,
        n_positions: int = 256,
        optimizer: OptimizerCallable = adamw,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.grammar = Grammar(grammar_text)
        n_tokens = N_SPECIAL + len(self.grammar.words)
        self.transformer = Transformer(n_tokens, width, n_layers, n_heads, n_positions)
        self._make_optimizer = optimizer
        self._lr_scheduler = lr_scheduler
        self.save_hyperparameters(self.describe()["init_args"])

    def setup(self, stage: str) -> None:
        """Check the grammar and the maximum length of the data.

        Raises:
            ValueError: If the data follow another grammar, or have sentences that are too long.
        """
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        text = getattr(data, "grammar_text", self.grammar.text)
        if not self.grammar.same_as(Grammar(text)):
            raise ValueError("data.grammar must be the grammar that the model was made for, but is a different one")
        longest = getattr(data, "max_length", 0) + 1
        if longest > self.transformer.n_positions:
            raise ValueError(
                f"model.n_positions must be above data.max_length, the words of the longest sentence, but they are "
                f"{self.transformer.n_positions} and {longest - 1}"
            )

    def forward(self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None) -> Tensor:
        """Return the logits of the next token; see `Transformer.forward`."""
        logits: Tensor = self.transformer(tokens, positions, segments)
        return logits

    def _loss(self, batch: TokenBatch) -> tuple[Tensor, int]:
        """Return the mean loss per predicted token, and the number of these tokens."""
        logits = self(batch.tokens, batch.positions, batch.segments).float()
        n = int((batch.targets != PAD).sum())
        summed = F.cross_entropy(logits.flatten(0, -2), batch.targets.flatten(), ignore_index=PAD, reduction="sum")
        return summed / max(1, n), n

    def training_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Return the loss."""
        loss, n = self._loss(TokenBatch(*batch))
        self.samples_seen += n * self.trainer.world_size
        if self.is_logging_step():
            self.log("train/loss", loss.detach(), prog_bar=True, batch_size=n)
            self.log("train/lr", float(self.trainer.optimizers[0].param_groups[0]["lr"]))
        return loss

    def validation_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Log the loss per token."""
        self._evaluate(batch, "val")

    def test_step(self, batch: TokenBatch, batch_idx: int) -> None:
        """Log the loss per token."""
        self._evaluate(batch, "test")

    def _evaluate(self, batch: TokenBatch, stage: str) -> None:
        loss, n = self._loss(TokenBatch(*batch))
        self.log_mean(f"{stage}/loss", loss, n, prog_bar=True)

    def predict_step(self, batch: TokenBatch, batch_idx: int) -> Tensor:
        """Return the logits of the next token."""
        logits: Tensor = self(*TokenBatch(*batch)[:1], *TokenBatch(*batch)[2:])
        return logits

    def configure_optimizers(self) -> Any:
        """Return the optimizer and, if given, the schedule, which steps once per training step."""
        optimizer, scheduler = self.make_optimizer()
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
