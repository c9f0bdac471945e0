"""What the data ask for: which receptive fields can hold a concept."""

from sae_lightning.geometry.bounds import Bound, bounds

__all__ = ["Bound", "bounds"]
