"""What holds for every figure: no pyplot, lazy matplotlib, readable files."""

import subprocess
import sys

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from sae_lightning import plotting
from sae_lightning.plotting._figures import panel_columns

NAMES = ["a", "b"]
LABELS = torch.tensor([0, 0, 1])
POINT = plotting.SweepPoint(
    "SpaDE", 0.1, 3.0, torch.tensor([0.5, 1.0]), {"nmse": 0.1}, torch.tensor([2.0, 4.0]), torch.tensor([0.1, 0.2])
)
FIGURES = {
    "achieved_f1": lambda: plotting.achieved_f1({"spade": torch.rand(2, 4), "relu": torch.rand(2, 4)}, NAMES, 0.9),
    "concept_bounds": lambda: plotting.concept_bounds({"ball": torch.rand(2, 1) + torch.zeros(1, 3)}, NAMES, 0.9),
    "concept_dimensions": lambda: plotting.concept_dimensions({"rank": torch.rand(2, 1) + torch.ones(1, 3)}, NAMES),
    "concept_f1_bars": lambda: plotting.concept_f1_bars({"SpaDE": torch.rand(2), "TopK": torch.rand(2)}, NAMES),
    "example_images": lambda: plotting.example_images(
        [Image.new("L", (28, 28), 90), Image.new("RGB", (40, 20))] * 3,
        [(0.0, 0.5, 0.5, 1.0), None] * 3,
        ["1.5"] * 6,
        "A",
    ),
    "f1_against_l0": lambda: plotting.f1_against_l0([POINT], NAMES, reference=[POINT]),
    "l0_against_dimension": lambda: plotting.l0_against_dimension([POINT], [2, 8], reference=[POINT]),
    "nmse_against_l0": lambda: plotting.nmse_against_l0([POINT], NAMES, reference=[POINT]),
    "principal_components": lambda: plotting.principal_components(
        torch.rand(9, 4), torch.arange(9) % 2, NAMES, marks=torch.rand(2, 4), marks_are="directions"
    ),
    "receptive_fields": lambda: plotting.receptive_fields(
        torch.rand(2, 4, 4) - 0.5,
        (0, 1, 0, 1),
        torch.rand(3, 2),
        LABELS,
        NAMES,
        prototypes=torch.rand(2, 2),
        directions=torch.rand(2, 2),
    ),
    "sample_scatter": lambda: plotting.sample_scatter(torch.rand(3, 2), LABELS, NAMES),
    "similarity_heatmap": lambda: plotting.similarity_heatmap(torch.eye(3), LABELS, NAMES),
    "similarity_heatmaps": lambda: plotting.similarity_heatmaps(
        {"even": (torch.eye(3), LABELS), "thin": (torch.eye(90), (torch.arange(90) == 89).long())}, ["a", "a long name"]
    ),
    "singular_values": lambda: plotting.singular_values(torch.rand(9, 4), torch.arange(9) % 2, NAMES),
    "sweep_scalars": lambda: plotting.sweep_scalars([POINT]),
}


def test_importing_the_package_imports_neither_matplotlib_nor_lightning():
    code = (
        "import sys, sae_lightning.plotting as p\n"
        "heavy = {'matplotlib', 'lightning', 'pytorch_lightning'}\n"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys()\n"
        "import torch\n"
        "p.sample_scatter(torch.rand(3, 2), torch.tensor([0, 0, 0]), ['a'])\n"
        "assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_public_function_that_draws_is_tested_here():
    others = {"FAMILY_STYLES", "FamilyStyle", "SweepPoint", "family_styles", "order_by_group", "palette", "save_png"}
    assert set(plotting.__all__) == set(FIGURES) | others


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_without_warnings_and_without_pyplot(name, tmp_path):
    figure = FIGURES[name]()
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []
    path = plotting.save_png(figure, tmp_path / "new" / "folder" / f"{name}.png", dpi=50)
    assert plt.get_fignums() == []
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.size == pytest.approx((figure.get_figwidth() * 50, figure.get_figheight() * 50), abs=1)
        assert len(image.convert("RGB").getcolors(maxcolors=10**6)) > 20  # a blank page has one


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_sticks_out_of_the_page(name):
    figure = FIGURES[name]()
    figure.draw_without_rendering()
    drawn = figure.get_tightbbox()
    assert drawn.x0 >= 0
    assert drawn.y0 >= 0
    assert drawn.x1 <= figure.get_figwidth()
    assert drawn.y1 <= figure.get_figheight()


def test_tensors_that_need_gradients_are_welcome_and_not_changed():
    f1 = torch.tensor([0.25, 0.5], requires_grad=True)
    figure = plotting.concept_f1_bars({"SpaDE": f1}, NAMES)
    assert [bar.get_height() for bar in figure.axes[0].containers[0]] == [0.25, 0.5]
    assert f1.requires_grad
    assert f1.grad is None


def test_save_png_takes_strings_and_replaces_files(tmp_path):
    figure = FIGURES["sample_scatter"]()
    target = tmp_path / "a.PNG"
    target.write_text("old")
    assert plotting.save_png(figure, str(target)) == target
    assert target.read_bytes().startswith(b"\x89PNG")


def test_save_png_errors(tmp_path):
    figure = Figure()
    with pytest.raises(ValueError, match=r"`path` must end in '.png', got .*a.pdf"):
        plotting.save_png(figure, tmp_path / "a.pdf")
    with pytest.raises(ValueError, match="`dpi` must be positive, got 0"):
        plotting.save_png(figure, tmp_path / "a.png", dpi=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("n_panels", "columns"), [(1, 1), (4, 4), (5, 3), (6, 3), (7, 4), (8, 4), (9, 3), (10, 5), (12, 4), (48, 8)]
)
def test_grids_are_compact(n_panels, columns):
    assert panel_columns(n_panels) == columns
