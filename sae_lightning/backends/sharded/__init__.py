"""Latents that lie on several processes: which process holds which, and a rule for each part."""

from sae_lightning.backends.sharded.backend import Sharded
from sae_lightning.backends.sharded.latents import Sharding

__all__ = ["Sharded", "Sharding"]
