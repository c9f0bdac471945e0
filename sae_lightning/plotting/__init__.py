"""Functions that draw tensors as matplotlib figures.

Each figure is a `matplotlib.figure.Figure` made without pyplot, so that there is no global state, no backend to
choose and no figure to close. matplotlib is imported when the first figure is drawn.
"""

from sae_lightning.plotting._sweeps import SweepPoint
from sae_lightning.plotting.bars import concept_f1_bars
from sae_lightning.plotting.bounds import concept_bounds, concept_dimensions
from sae_lightning.plotting.colors import FAMILY_STYLES, FamilyStyle, family_styles, palette
from sae_lightning.plotting.components import principal_components, singular_values
from sae_lightning.plotting.dimension import l0_against_dimension
from sae_lightning.plotting.examples import example_images
from sae_lightning.plotting.fields import receptive_fields
from sae_lightning.plotting.files import save_png
from sae_lightning.plotting.scatter import sample_scatter
from sae_lightning.plotting.similarity import order_by_group, similarity_heatmap, similarity_heatmaps
from sae_lightning.plotting.sweep import f1_against_l0, nmse_against_l0, sweep_scalars
from sae_lightning.plotting.visibility import achieved_f1

__all__ = [
    "FAMILY_STYLES",
    "FamilyStyle",
    "SweepPoint",
    "achieved_f1",
    "concept_bounds",
    "concept_dimensions",
    "concept_f1_bars",
    "example_images",
    "f1_against_l0",
    "family_styles",
    "l0_against_dimension",
    "nmse_against_l0",
    "order_by_group",
    "palette",
    "principal_components",
    "receptive_fields",
    "sample_scatter",
    "save_png",
    "similarity_heatmap",
    "similarity_heatmaps",
    "singular_values",
    "sweep_scalars",
]
