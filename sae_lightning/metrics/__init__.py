"""Metrics of what an SAE recovers and what it hides, accumulated over batches and processes.

Each metric is a class here and a pure function in the module of the same name in
:mod:`sae_lightning.metrics.functional`. Classes are imported on first use, so that the functions can be imported
without torchmetrics.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sae_lightning.metrics.code_similarity import CodeSimilarity
    from sae_lightning.metrics.concept_discovery import ConceptDiscovery
    from sae_lightning.metrics.concept_f1 import ConceptF1
    from sae_lightning.metrics.dead_latents import DeadLatents
    from sae_lightning.metrics.fidelity import Fidelity
    from sae_lightning.metrics.l0 import L0
    from sae_lightning.metrics.latent_overlap import LatentOverlap
    from sae_lightning.metrics.latent_similarity import LatentSimilarity
    from sae_lightning.metrics.monosemanticity import Monosemanticity
    from sae_lightning.metrics.normalized_mse import NormalizedMSE
    from sae_lightning.metrics.top_examples import TopExamples

__all__ = [
    "L0",
    "CodeSimilarity",
    "ConceptDiscovery",
    "ConceptF1",
    "DeadLatents",
    "Fidelity",
    "LatentOverlap",
    "LatentSimilarity",
    "Monosemanticity",
    "NormalizedMSE",
    "TopExamples",
]

_MODULES = {
    "CodeSimilarity": "code_similarity",
    "ConceptDiscovery": "concept_discovery",
    "ConceptF1": "concept_f1",
    "DeadLatents": "dead_latents",
    "Fidelity": "fidelity",
    "L0": "l0",
    "LatentOverlap": "latent_overlap",
    "LatentSimilarity": "latent_similarity",
    "Monosemanticity": "monosemanticity",
    "NormalizedMSE": "normalized_mse",
    "TopExamples": "top_examples",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
