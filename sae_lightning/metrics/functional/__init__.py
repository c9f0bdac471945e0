"""The metrics of :mod:`sae_lightning.metrics` as pure functions of tensors."""

from sae_lightning.metrics.functional.code_similarity import CodeSimilarityResult, code_similarity
from sae_lightning.metrics.functional.concept_discovery import ConceptDiscoveryResult, concept_discovery
from sae_lightning.metrics.functional.concept_f1 import ConceptF1Result, concept_f1
from sae_lightning.metrics.functional.dead_latents import DeadLatentsResult, dead_latents
from sae_lightning.metrics.functional.fidelity import FidelityResult, fidelity
from sae_lightning.metrics.functional.l0 import L0Result, l0
from sae_lightning.metrics.functional.latent_overlap import LatentOverlapResult, latent_overlap
from sae_lightning.metrics.functional.latent_similarity import LatentSimilarityResult, latent_similarity
from sae_lightning.metrics.functional.monosemanticity import MonosemanticityResult, monosemanticity
from sae_lightning.metrics.functional.normalized_mse import NormalizedMSEResult, normalized_mse
from sae_lightning.metrics.functional.top_examples import TopExamplesResult, top_examples

__all__ = [
    "CodeSimilarityResult",
    "ConceptDiscoveryResult",
    "ConceptF1Result",
    "DeadLatentsResult",
    "FidelityResult",
    "L0Result",
    "LatentOverlapResult",
    "LatentSimilarityResult",
    "MonosemanticityResult",
    "NormalizedMSEResult",
    "TopExamplesResult",
    "code_similarity",
    "concept_discovery",
    "concept_f1",
    "dead_latents",
    "fidelity",
    "l0",
    "latent_overlap",
    "latent_similarity",
    "monosemanticity",
    "normalized_mse",
    "top_examples",
]
