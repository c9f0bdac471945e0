"""When to measure, draw, resample and write."""

from sae_lightning.callbacks.checkpoint import RunCheckpoint
from sae_lightning.callbacks.divergence import Divergence
from sae_lightning.callbacks.dynamics import TrainingDynamics
from sae_lightning.callbacks.fidelity import DownstreamFidelity
from sae_lightning.callbacks.geometry import GeometryFigures
from sae_lightning.callbacks.meaning import TopActivations
from sae_lightning.callbacks.nonfinite import NonfiniteLoss
from sae_lightning.callbacks.page import ReportPage
from sae_lightning.callbacks.predictions import CodesWriter, load_codes
from sae_lightning.callbacks.progress import SAEProgressBar
from sae_lightning.callbacks.receptive_fields import ReceptiveFields
from sae_lightning.callbacks.recovery import ConceptRecovery
from sae_lightning.callbacks.recovery_figures import RecoveryFigures
from sae_lightning.callbacks.resampling import ResampleDeadLatents
from sae_lightning.callbacks.results import ResultsWriter, load_results
from sae_lightning.callbacks.stopping import GracefulStop
from sae_lightning.callbacks.summary import ModelOverview
from sae_lightning.callbacks.table import RecoveryTable
from sae_lightning.callbacks.throughput import Throughput
from sae_lightning.callbacks.visibility import VisibilityReport
from sae_lightning.subjects.feature_report import FeatureReport
from sae_lightning.subjects.grammar_report import GrammarReport

__all__ = [
    "CodesWriter",
    "ConceptRecovery",
    "Divergence",
    "DownstreamFidelity",
    "FeatureReport",
    "GeometryFigures",
    "GracefulStop",
    "GrammarReport",
    "ModelOverview",
    "NonfiniteLoss",
    "ReceptiveFields",
    "RecoveryFigures",
    "RecoveryTable",
    "ReportPage",
    "ResampleDeadLatents",
    "ResultsWriter",
    "RunCheckpoint",
    "SAEProgressBar",
    "Throughput",
    "TopActivations",
    "TrainingDynamics",
    "VisibilityReport",
    "load_codes",
    "load_results",
]
