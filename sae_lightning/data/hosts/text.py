"""Language models from Hugging Face, and which of their tokens are wanted."""

import re
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sae_lightning.data.hosts.base import Host, Piece, Rows
from sae_lightning.data.hosts.pretrained import load_pretrained
from sae_lightning.data.sources.base import TextExample

_PADDING = {"attention_mask": 0, "token_type_ids": 0}
_MOST = 100_000  # tokenizers without a limit of their own say a huge number


class TextHost(Host[TextExample]):
    """A language model from Hugging Face: its name on the hub, or a folder.

    Args:
        name: Name on the hub, path of a folder, or `package:NAME/FOLDER` for a folder of an installed package.
        revision: Branch, tag or commit on the hub.
        causal: Whether to load it with the head that predicts the next token (AutoModelForCausalLM), which its layers'
            names then tell; otherwise AutoModel.
        tokens: Which activations are wanted. `words`: one for each word (of a labelled text, its labelled words;
            otherwise what stands between white space); `text`: all tokens but special ones; `all`: special ones too;
            `cls`: the first token; `mean`: the mean over all tokens.
        piece: Which token of a word of several tokens: the first, or the last, which is the one that has seen all of
            it in a causal model.
        max_length: Most tokens that are read in one go; None takes what the model can.
        long_texts: Whether longer texts are read in several pieces (`split`) or without their rest (`cut`).
        dtype: Type in which the model runs.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ValueError: If the model cannot be loaded, has no fast tokenizer, or `max_length` exceeds what it can.
    """

    batch_size = 8192

    def __init__(
        self,
        name: str,
        revision: str | None = None,
        causal: bool = False,
        tokens: Literal["words", "text", "all", "cls", "mean"] = "words",
        piece: Literal["first", "last"] = "last",
        max_length: int | None = None,
        long_texts: Literal["split", "cut"] = "split",
        dtype: Literal["float32", "bfloat16", "float16"] = "float32",
        trust_remote_code: bool = False,
    ) -> None:
        model = load_pretrained(
            "AutoModelForCausalLM" if causal else "AutoModel",
            name,
            revision=revision,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
        )
        self.tokenizer: Any = load_pretrained(
            "AutoTokenizer", name, revision=revision, trust_remote_code=trust_remote_code
        )
        if not self.tokenizer.is_fast:
            raise ValueError(f"name must have a fast tokenizer, which says where tokens are, but {name!r} has none")
        super().__init__(model)
        most = min(self.tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or _MOST)
        if max_length is not None and not 1 <= max_length <= most:
            raise ValueError(f"max_length must be between 1 and {most} for {name!r}, but is {max_length}")
        self.max_length = max_length or (most if most < _MOST else None)
        self.tokens = tokens
        self.piece = piece
        self.long_texts = long_texts
        pad = self.tokenizer.pad_token_id
        self._padding = {**_PADDING, "input_ids": 0 if pad is None else pad}

    def pieces(self, examples: Sequence[TextExample]) -> list[Piece]:
        """Tokenize some texts; long ones become several pieces, or lose their end."""
        if not examples:
            return []
        found = self.tokenizer(
            [example.text for example in examples],
            truncation=self.max_length is not None,
            max_length=self.max_length,
            return_overflowing_tokens=self.long_texts == "split" and self.max_length is not None,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=True,
            verbose=False,
        )
        owners = found.get("overflow_to_sample_mapping", range(len(examples)))
        names = [name for name in self.tokenizer.model_input_names if name in found]
        pieces = []
        aligned = 0
        for i, owner in enumerate(owners):
            if not found["input_ids"][i]:
                continue
            inputs = {name: torch.tensor(found[name][i]) for name in names}
            offsets = np.array(found["offset_mapping"][i])
            special = np.array(found["special_tokens_mask"][i], dtype=bool)
            rows = self._rows(examples[owner], offsets, special)
            aligned += len(rows.concepts) if examples[owner].spans else 0
            pieces.append(Piece(owner, inputs, len(offsets), rows))
        if self.tokens == "words" and self.long_texts == "split":  # a text that was cut lacks words anyway
            labelled = sum(len(example.spans) for example in examples)
            self.unaligned += labelled - aligned
            if 2 * aligned < labelled:
                raise ValueError(
                    f"labels must align with tokens, but only {aligned} of {labelled} labelled words have a token, "
                    f"from {examples[0].document!r} on: does the tokenizer change the text?"
                )
        return pieces

    def _rows(self, example: TextExample, offsets: np.ndarray[Any, Any], special: np.ndarray[Any, Any]) -> Rows:
        """The wanted tokens of a piece of a text."""
        n = len(offsets)
        if self.tokens in ("cls", "mean"):
            places = torch.zeros(1, dtype=torch.long) if self.tokens == "cls" else torch.arange(n)[None]
            whole = torch.tensor([-1], dtype=torch.int32)
            return Rows(places, torch.tensor([example.concept]), whole, whole)
        spans = np.array(example.spans or _words(example.text), dtype=np.int64).reshape(-1, 2)
        labels = np.array(example.concepts or [example.concept] * len(spans), dtype=np.int64)
        content = np.flatnonzero(~special)
        starts, ends = offsets[content, 0], offsets[content, 1]
        if self.tokens == "words":
            if not len(content):
                kept, chosen = np.zeros(len(spans), dtype=bool), np.zeros(0, dtype=np.int64)
            elif self.piece == "last":
                at = np.minimum(np.searchsorted(ends, spans[:, 1]), len(content) - 1)
                kept = (starts[at] < spans[:, 1]) & (spans[:, 1] <= ends[at])
                chosen = content[at[kept]]
            else:
                at = np.maximum(np.searchsorted(starts, spans[:, 0], side="right") - 1, 0)
                kept = (starts[at] <= spans[:, 0]) & (spans[:, 0] < ends[at])
                chosen = content[at[kept]]
            return _as_rows(chosen, labels[kept], spans[kept, 0], spans[kept, 1])
        chosen = np.arange(n) if self.tokens == "all" else content
        starts, ends = offsets[chosen, 0], offsets[chosen, 1]
        concepts = np.full(len(chosen), example.concept)
        if example.spans:  # the word that a token's last character lies in
            at = np.minimum(np.searchsorted(spans[:, 1], ends), len(spans) - 1)
            inside = (spans[at, 0] < ends) & (ends <= spans[at, 1]) & ~special[chosen]
            concepts = np.where(inside, labels[at], -1)
        return _as_rows(chosen, concepts, starts, ends)

    def collate(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """Fill shorter pieces up on their right."""
        longest = max(piece.length for piece in pieces)
        batch = {}
        for name in pieces[0].inputs:
            filled = torch.full((len(pieces), longest), self._padding.get(name, 0), dtype=torch.long)
            for row, piece in zip(filled, pieces, strict=True):
                row[: piece.length] = piece.inputs[name]
            batch[name] = filled
        return batch


def _words(text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(r"\S+", text)]


def _as_rows(
    places: np.ndarray[Any, Any],
    concepts: np.ndarray[Any, Any],
    starts: np.ndarray[Any, Any],
    ends: np.ndarray[Any, Any],
) -> Rows:
    return Rows(
        torch.from_numpy(places.astype(np.int64)),
        torch.from_numpy(concepts.astype(np.int64)),
        torch.from_numpy(starts.astype(np.int32)),
        torch.from_numpy(ends.astype(np.int32)),
    )
