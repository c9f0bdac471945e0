"""Grammars that come with the package, sentences of one of them, and a corpus that may be there."""

from typing import Any

import torch

from sae_lightning.data import Grammar, SentenceDataModule
from sae_lightning.data.formal_language.derivations import SentenceSampler
from tests.helpers.runs import CONFIGS

FOLDER = CONFIGS / "formal_language" / "grammars"
SHIPPED = sorted(FOLDER.glob("*.pcfg"))
ENGLISH = str(FOLDER / "english.pcfg")
TEXT = (FOLDER / "english.pcfg").read_text()
TINY = {"width": 8, "n_layers": 1, "n_heads": 2, "n_positions": 32}  # sizes of a LanguageModel


def sentences(n=40, max_length=20, seed=0):
    """Sentences of the English grammar."""
    return SentenceSampler(Grammar.from_file(ENGLISH), max_length).draw(n, torch.Generator().manual_seed(seed))


def sentence_data(**changes: Any) -> SentenceDataModule:
    """A few batches of English sentences of up to 20 words."""
    sizes = {"n_train": 640, "n_val": 30, "n_test": 20, "batch_size": 64, "eval_batch_size": 8, "seed": 1}
    return SentenceDataModule(ENGLISH, **{"max_length": 20, **sizes, **changes})


def has_brown() -> bool:
    """Whether the Brown corpus is in a folder of NLTK_DATA."""
    import nltk

    try:
        nltk.data.find("corpora/brown")
    except LookupError:
        return False
    return True
