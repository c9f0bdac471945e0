"""Geometry of the data: dimensions of concepts, and the best F1 that receptive fields of each family can reach."""

from sae_lightning.geometry.bounds import Bound, bounds
from sae_lightning.geometry.clusters import Clusters, cluster
from sae_lightning.geometry.diagnosis import ConceptGeometry, Diagnosis, diagnose
from sae_lightning.geometry.dimension import Dimension, Heterogeneity, dimension, dimensions, heterogeneity
from sae_lightning.geometry.estimate import Estimate
from sae_lightning.geometry.recommendation import Architecture, Recommendation, Verdict, recommend
from sae_lightning.geometry.visibility import Sight, sights

__all__ = [
    "Architecture",
    "Bound",
    "Clusters",
    "ConceptGeometry",
    "Diagnosis",
    "Dimension",
    "Estimate",
    "Heterogeneity",
    "Recommendation",
    "Sight",
    "Verdict",
    "bounds",
    "cluster",
    "diagnose",
    "dimension",
    "dimensions",
    "heterogeneity",
    "recommend",
    "sights",
]
