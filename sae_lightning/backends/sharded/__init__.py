"""Backend for latents distributed over several processes."""

from sae_lightning.backends.sharded.backend import Sharded
from sae_lightning.backends.sharded.latents import Sharding

__all__ = ["Sharded", "Sharding"]
