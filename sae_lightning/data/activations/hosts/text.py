"""Host models of text, from Hugging Face."""

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sae_lightning.data.activations.hosts.base import Host, Piece, Rows
from sae_lightning.data.activations.hosts.pretrained import load_pretrained
from sae_lightning.data.sources.base import TextExample

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_PADDING = {"attention_mask": 0, "token_type_ids": 0}
_SPACES = " ▁Ġ"  # representations of a space in vocabularies
_MOST = 100_000  # tokenizers without a maximum length report a huge number


class TextHost(Host[TextExample]):
    """A language model from Hugging Face.

    Args:
        name: Name on the hub, path of a folder, or `package:NAME/FOLDER` for a folder of an installed package.
        revision: Branch, tag or commit on the hub.
        causal: Whether to load the model with its language-modeling head (AutoModelForCausalLM), which changes the
            names of its layers, instead of AutoModel.
        tokens: The activations to read. `words`: one per word (the labeled words of a labeled text, the words between
            white space otherwise); `text`: all tokens except special ones; `all`: all tokens; `cls`: the first token;
            `mean`: the mean over all tokens.
        piece: Which token represents a word of several tokens: the first or the last that overlaps the word, even by a
            single byte. In a causal model, only the last token has seen the whole word.
        max_length: Maximum number of tokens per forward pass and text; None takes the model's maximum.
        long_texts: Whether a longer text is split into several pieces (split) or truncated (cut).
        dtype: Type in which the model runs.
        trust_remote_code: Whether code that comes with the model may run.

    Raises:
        ValueError: If the model cannot be loaded, has no fast tokenizer, or supports fewer than `max_length` tokens.
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
            raise ValueError(
                f"name must have a fast tokenizer, which reports the position of tokens, but {name!r} has none"
            )
        super().__init__(model)
        most = min(self.tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None) or _MOST)
        if max_length is not None and not 1 <= max_length <= most:
            raise ValueError(f"max_length must be between 1 and {most} for {name!r}, but is {max_length}")
        self.tokenizer.truncation_side = "right"  # pieces in the order of the text; `cut` keeps the beginning
        self.max_length = max_length or (most if most < _MOST else None)
        self.tokens = tokens
        self.piece = piece
        self.long_texts = long_texts
        pad = self.tokenizer.pad_token_id
        self._spaces = [i for token, i in self.tokenizer.get_vocab().items() if not token.strip(_SPACES)]
        self._padding = {**_PADDING, "input_ids": 0 if pad is None else pad}

    def pieces(self, examples: Sequence[TextExample]) -> list[Piece]:
        """Tokenize texts; long ones are split or truncated."""
        if not examples:
            return []
        found = self.tokenizer(
            [example.text for example in examples],
            truncation=self.max_length is not None,
            max_length=self.max_length,
            return_overflowing_tokens=self.max_length is not None,
            return_offsets_mapping=True,
            return_special_tokens_mask=True,
            return_attention_mask=True,
            verbose=False,
        )
        owners = found.get("overflow_to_sample_mapping", range(len(examples)))
        names = [name for name in self.tokenizer.model_input_names if name in found]
        pieces = []
        aligned = 0
        for owner, group in groupby(range(len(owners)), key=lambda i: owners[i]):
            parts = [i for i in group if found["input_ids"][i]]
            example = examples[owner]
            rows = self._rows(example, found, parts)
            if self.long_texts == "cut":
                parts, rows = parts[:1], rows[:1]
            for i, wanted in zip(parts, rows, strict=True):
                aligned += len(wanted.concepts) if example.spans else 0
                inputs = {name: torch.tensor(found[name][i]) for name in names}
                pieces.append(Piece(owner, inputs, len(found["input_ids"][i]), wanted))
        if self.tokens == "words" and self.long_texts == "split":  # truncation removes words without any fault
            labeled = sum(len(example.spans) for example in examples)
            self.unaligned += labeled - aligned
            if 2 * aligned < labeled:
                raise ValueError(
                    f"labels must align with tokens, but only {aligned} of {labeled} labeled words have a token, "
                    f"from {examples[0].document!r} on: does the tokenizer change the text?"
                )
        return pieces

    def _rows(self, example: TextExample, found: Any, parts: list[int]) -> list[Rows]:
        """Return the tokens to read of each part of a text.

        Words are matched to the tokens of all parts together, because a part may end within a word or a character.

        Args:
            example: The text.
            found: Output of the tokenizer.
            parts: Indices of the parts of the text in `found`.
        """
        lengths = [len(found["input_ids"][i]) for i in parts]
        if self.tokens in ("cls", "mean"):
            whole = torch.tensor([-1], dtype=torch.int32)
            places = [
                torch.zeros(1, dtype=torch.long) if self.tokens == "cls" else torch.arange(n)[None] for n in lengths
            ]
            return [Rows(place, torch.tensor([example.concept]), whole, whole) for place in places]
        if not parts:
            return []
        ids, offsets, special = (
            np.concatenate([found[name][i] for i in parts])
            for name in ("input_ids", "offset_mapping", "special_tokens_mask")
        )
        words = np.array(example.spans or _words(example.text), dtype=np.int64).reshape(-1, 2)
        labels = np.array(example.concepts or [example.concept] * len(words), dtype=np.int64)
        content = np.flatnonzero(special == 0)
        holds = np.zeros(len(ids), dtype=bool)
        holds[content] = ~self._is_added(ids[content], offsets[content])
        if self.tokens == "words":
            tokens = np.flatnonzero(holds)
            at, kept = _overlapping(words, offsets[tokens], self.piece)
            return _by_part(tokens[at], labels[kept], words[kept], lengths)
        chosen = np.arange(len(ids)) if self.tokens == "all" else content
        concepts = np.full(len(chosen), example.concept)
        if example.spans:
            at, inside = _overlapping(offsets[chosen], words, "last")
            concepts = np.full(len(chosen), -1)
            concepts[inside] = labels[at]
            concepts[~holds[chosen]] = -1
        return _by_part(chosen, concepts, offsets[chosen], lengths)

    def _is_added(self, ids: Ints, offsets: Ints) -> Bools:
        """Mask the space tokens that the tokenizer added before a word: their offset is that of the next token."""
        begins, ends = offsets.T
        added: Bools = np.isin(ids, self._spaces) & (begins < ends) & (begins == np.append(begins[1:], -1))
        return added

    def collate(self, pieces: Sequence[Piece]) -> dict[str, Tensor]:
        """Pad shorter pieces on the right."""
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


def _overlapping(spans: Ints, others: Ints, which: Literal["first", "last"]) -> tuple[Ints, Bools]:
    """Find, for each span, the first or last of the other spans that overlaps it.

    Several spans may share one character, such as the tokens of the three bytes of '日'.

    Args:
        spans: Begin and end of each, in the order of the text, `(n_spans, 2)`.
        others: Begin and end of each, in the order of the text, `(n_others, 2)`.
        which: Whether to return the first or the last.

    Returns:
        Index into `others` for each span with an overlap, `(n_found,)`, and the mask of these spans, `(n_spans,)`.
    """
    (begins, ends), (other_begins, other_ends) = spans.T, others.T
    if which == "last":
        at = np.searchsorted(other_begins, ends, side="left") - 1
    else:
        at = np.searchsorted(other_ends, begins, side="right")
    found = (at >= 0) & (at < len(others))
    found[found] = (other_begins[at[found]] < ends[found]) & (begins[found] < other_ends[at[found]])
    return at[found], found


def _by_part(tokens: Ints, concepts: Ints, spans: Ints, lengths: list[int]) -> list[Rows]:
    """Split the rows of a whole text into those of its parts, with token indices relative to each part."""
    begins = np.cumsum([0, *lengths])
    bounds = np.searchsorted(tokens, begins)
    return [
        Rows(
            torch.from_numpy(tokens[low:high] - begin),
            torch.from_numpy(concepts[low:high]),
            torch.from_numpy(spans[low:high, 0].astype(np.int32)),
            torch.from_numpy(spans[low:high, 1].astype(np.int32)),
        )
        for low, high, begin in zip(bounds[:-1], bounds[1:], begins[:-1], strict=True)
    ]
