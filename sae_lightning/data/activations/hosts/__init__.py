"""Host models, whose activations are read."""

from sae_lightning.data.activations.hosts.base import Host
from sae_lightning.data.activations.hosts.image import ImageHost, ModuleHost
from sae_lightning.data.activations.hosts.text import TextHost

__all__ = ["Host", "ImageHost", "ModuleHost", "TextHost"]
