"""Models whose activations are read."""

from sae_lightning.data.hosts.base import Host
from sae_lightning.data.hosts.image import ImageHost, ModuleHost
from sae_lightning.data.hosts.text import TextHost

__all__ = ["Host", "ImageHost", "ModuleHost", "TextHost"]
