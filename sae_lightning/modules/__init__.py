"""LightningModules: one per SAE architecture, ComposedSAE for any other, Comparison for several at once."""

from sae_lightning.modules.affine import AffineSAE
from sae_lightning.modules.base import BaseSAE
from sae_lightning.modules.comparison import Comparison
from sae_lightning.modules.composed import ComposedSAE
from sae_lightning.modules.jumprelu import JumpReLUSAE
from sae_lightning.modules.loading import load_module, load_sae
from sae_lightning.modules.member import Evaluation
from sae_lightning.modules.module import Predictions, SAEModule
from sae_lightning.modules.relu import ReLUSAE
from sae_lightning.modules.run import RunModule
from sae_lightning.modules.spade import SpaDE
from sae_lightning.modules.topk import TopKSAE
from sae_lightning.modules.transcoder import Transcoder

__all__ = [
    "AffineSAE",
    "BaseSAE",
    "Comparison",
    "ComposedSAE",
    "Evaluation",
    "JumpReLUSAE",
    "Predictions",
    "ReLUSAE",
    "RunModule",
    "SAEModule",
    "SpaDE",
    "TopKSAE",
    "Transcoder",
    "load_module",
    "load_sae",
]
