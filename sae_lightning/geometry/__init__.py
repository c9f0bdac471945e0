"""What the data ask for: how many dimensions concepts have, and which receptive fields can hold them."""

from sae_lightning.geometry.dimension import Dimension, Heterogeneity, dimension, dimensions, heterogeneity
from sae_lightning.geometry.estimate import Estimate

__all__ = ["Dimension", "Estimate", "Heterogeneity", "dimension", "dimensions", "heterogeneity"]
