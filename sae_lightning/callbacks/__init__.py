"""When to measure, draw, resample and write.

A callback of one's own that the command line offers is a subclass of `RunCallback` with a key, and a line in `DEFAULT`.
"""

from sae_lightning.callbacks.base import RunCallback
from sae_lightning.callbacks.checkpoint import RunCheckpoint
from sae_lightning.callbacks.codes import CodesWriter, load_codes
from sae_lightning.callbacks.divergence import Divergence
from sae_lightning.callbacks.dynamics import TrainingDynamics
from sae_lightning.callbacks.features import FeaturesReport
from sae_lightning.callbacks.fidelity import DownstreamFidelity
from sae_lightning.callbacks.figures import RecoveryFigures
from sae_lightning.callbacks.geometry import GeometryFigures
from sae_lightning.callbacks.grammar import GrammarReport
from sae_lightning.callbacks.meaning import LatentMeaning
from sae_lightning.callbacks.nonfinite import NonfiniteLoss
from sae_lightning.callbacks.page import ReportPage
from sae_lightning.callbacks.progress import SAEProgressBar
from sae_lightning.callbacks.receptive_fields import ReceptiveFields
from sae_lightning.callbacks.recovery import ConceptRecovery
from sae_lightning.callbacks.resampling import ResampleDeadLatents
from sae_lightning.callbacks.results import ResultsWriter, load_results
from sae_lightning.callbacks.stop import GracefulStop
from sae_lightning.callbacks.summary import ModelOverview
from sae_lightning.callbacks.table import RecoveryTable
from sae_lightning.callbacks.throughput import Throughput
from sae_lightning.callbacks.visibility import VisibilityReport

DEFAULT: tuple[type[RunCallback], ...] = (
    RunCheckpoint,
    GracefulStop,
    NonfiniteLoss,
    Divergence,
    ConceptRecovery,
    RecoveryFigures,
    ReceptiveFields,
    GeometryFigures,
    RecoveryTable,
    TrainingDynamics,
    CodesWriter,
    SAEProgressBar,
    DownstreamFidelity,
    LatentMeaning,
    VisibilityReport,
    ReportPage,
    GrammarReport,
    FeaturesReport,
)
"""The callbacks of every run of the command line, in the order in which they run.

Their arguments on the command line, and which of them a model gets, follow from what each of them declares.
"""

__all__ = [
    "DEFAULT",
    "CodesWriter",
    "ConceptRecovery",
    "Divergence",
    "DownstreamFidelity",
    "FeaturesReport",
    "GeometryFigures",
    "GracefulStop",
    "GrammarReport",
    "LatentMeaning",
    "ModelOverview",
    "NonfiniteLoss",
    "ReceptiveFields",
    "RecoveryFigures",
    "RecoveryTable",
    "ReportPage",
    "ResampleDeadLatents",
    "ResultsWriter",
    "RunCallback",
    "RunCheckpoint",
    "SAEProgressBar",
    "Throughput",
    "TrainingDynamics",
    "VisibilityReport",
    "load_codes",
    "load_results",
]
