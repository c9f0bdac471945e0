"""Formulas of sparse autoencoders, with torch as the only dependency: encoder, projection, regularizer, decoder."""

from sae_lightning.nn.autoencoder import SAEOutput, SparseAutoencoder
from sae_lightning.nn.decoder import Decoder
from sae_lightning.nn.encoders import Affine, Encoder, SquaredDistance
from sae_lightning.nn.firing import FIRING_THRESHOLD, fires
from sae_lightning.nn.initialization import Initialization
from sae_lightning.nn.projections import Jump, KSparse, Orthant, Projection, Simplex
from sae_lightning.nn.receptive_fields import Ball, Cone, ConvexCell, HalfSpace, ReceptiveField
from sae_lightning.nn.regularizers import L0, L1, AuxK, DistanceWeightedL1, Regularizer
from sae_lightning.nn.standardizer import Standardizer

__all__ = [
    "FIRING_THRESHOLD",
    "L0",
    "L1",
    "Affine",
    "AuxK",
    "Ball",
    "Cone",
    "ConvexCell",
    "Decoder",
    "DistanceWeightedL1",
    "Encoder",
    "HalfSpace",
    "Initialization",
    "Jump",
    "KSparse",
    "Orthant",
    "Projection",
    "ReceptiveField",
    "Regularizer",
    "SAEOutput",
    "Simplex",
    "SparseAutoencoder",
    "SquaredDistance",
    "Standardizer",
    "fires",
]
