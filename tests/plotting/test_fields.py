"""Receptive fields: shade, boundary and marks lie where the codes say."""

import numpy as np
import pytest
import torch
from matplotlib.contour import QuadContourSet

from sae_lightning.nn.firing import FIRING_THRESHOLD
from sae_lightning.plotting import receptive_fields
from sae_lightning.plotting.fields import MAX_PANELS, MAX_POINTS_PER_PANEL

EXTENT = (-2.0, 2.0, -1.0, 1.0)
POINTS = torch.tensor([[0.5, 0.5], [-0.5, 0.25], [1.0, -0.5]])
CONCEPTS = torch.tensor([0, 1, -1])
NAMES = ["left", "right"]


def half_plane(height: int = 21, width: int = 41) -> torch.Tensor:
    """Codes of ReLU(x - 1) on the grid, `(1, height, width)`: fires for x > 1, at all y."""
    x = torch.linspace(*EXTENT[:2], width)
    return (x - 1).relu().expand(1, height, width)


def contours(axes):
    return [child for child in axes.get_children() if isinstance(child, QuadContourSet)]


def test_one_panel_per_latent_with_title_image_and_points():
    codes = torch.cat([half_plane(), half_plane().flip(2), half_plane()])
    figure = receptive_fields(codes, EXTENT, POINTS, CONCEPTS, NAMES, titles=["a", "b", "c"], title="all")
    *panels, bar = figure.axes
    assert [axes.get_title(loc="left") for axes in panels] == ["a", "b", "c"]
    assert figure.get_suptitle() == "all"
    assert bar.get_xlabel() == "|code| / latent's maximum"
    for axes in panels:
        assert axes.get_xlim() == EXTENT[:2]
        assert axes.get_ylim() == EXTENT[2:]
        (scatter,) = [c for c in axes.collections if not isinstance(c, QuadContourSet)]
        assert sorted(scatter.get_offsets().tolist()) == sorted(POINTS.tolist())
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["left", "right", "unlabeled", "field's boundary"]


def test_shade_is_the_code_over_its_maximum_and_empty_where_it_does_not_fire():
    codes = 3 * half_plane().to(torch.bfloat16)
    axes = receptive_fields(codes, EXTENT, POINTS, CONCEPTS, NAMES).axes[0]
    drawn = axes.images[0].get_array()
    expected = codes[0].float() / codes.float().max()
    assert np.array_equal(drawn.mask, (codes[0] <= 0).numpy())
    np.testing.assert_allclose(drawn.filled(0), expected.numpy(), rtol=1e-6)
    assert axes.images[0].origin == "lower"
    # pixel centres lie on the grid's nodes, so that edges stand half a step (0.05) outside
    assert axes.images[0].get_extent() == pytest.approx([-2.05, 2.05, -1.05, 1.05])


def test_the_boundary_lies_where_the_latent_starts_to_fire():
    axes = receptive_fields(half_plane(), EXTENT, POINTS, CONCEPTS, NAMES).axes[0]
    (contour,) = contours(axes)
    assert contour.levels.tolist() == [FIRING_THRESHOLD]
    vertices = np.concatenate([path.vertices for path in contour.get_paths()])
    np.testing.assert_allclose(vertices[:, 0], 1.0, atol=1e-4)
    assert vertices[:, 1].min() == -1.0
    assert vertices[:, 1].max() == 1.0


def test_rows_are_y_and_columns_are_x():
    codes = torch.zeros(1, 5, 9)
    codes[0, 4, 0] = 1.0  # top left
    axes = receptive_fields(codes, EXTENT, POINTS, CONCEPTS, NAMES).axes[0]
    vertices = np.concatenate([path.vertices for path in contours(axes)[0].get_paths()])
    assert vertices[:, 0].max() < -1.4
    assert vertices[:, 1].min() > 0.4


@pytest.mark.parametrize("value", [0.0, FIRING_THRESHOLD / 2])
def test_a_silent_latent_is_named_so_and_has_no_boundary(value, recwarn):
    codes = torch.cat([torch.full((1, 21, 41), value), half_plane()])
    silent, alive, _ = receptive_fields(codes, EXTENT, POINTS, CONCEPTS, NAMES).axes
    assert silent.get_title(loc="left") == "latent 0 (silent)"
    assert alive.get_title(loc="left") == "latent 1"
    assert contours(silent) == []
    assert len(contours(alive)) == 1
    assert silent.images[0].get_array().mask.all()
    assert not recwarn.list


def test_a_latent_that_fires_everywhere_has_no_boundary(recwarn):
    axes = receptive_fields(torch.ones(1, 4, 4), EXTENT, POINTS, CONCEPTS, NAMES).axes[0]
    assert contours(axes) == []
    assert not recwarn.list


def test_stars_lie_on_the_prototypes():
    prototypes = torch.tensor([[0.5, -0.5], [1.5, 0.75]])
    figure = receptive_fields(half_plane().repeat(2, 1, 1), EXTENT, POINTS, CONCEPTS, NAMES, prototypes=prototypes)
    for axes, prototype in zip(figure.axes, prototypes.tolist(), strict=False):
        (star,) = axes.lines
        assert star.get_marker() == "*"
        assert star.get_xydata().tolist() == [prototype]
    assert figure.legends[0].get_texts()[-1].get_text() == "prototype"


def test_arrows_start_at_the_origin_and_keep_only_the_angle():
    directions = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    figure = receptive_fields(
        half_plane().repeat(2, 1, 1), EXTENT, POINTS, CONCEPTS, NAMES, directions=directions, origin=(0.25, -0.5)
    )
    first, second, _ = figure.axes
    (arrow,) = first.texts
    assert arrow.xyann == (0.25, -0.5)
    # 0.3 of the shorter side, which is 2
    np.testing.assert_allclose(np.subtract(arrow.xy, arrow.xyann), [0.6 * 0.6, 0.6 * 0.8], rtol=1e-6)
    assert not second.texts
    assert figure.legends[0].get_texts()[-1].get_text() == "encoder direction"


def test_many_points_are_thinned():
    points = torch.rand(5_000, 2)
    figure = receptive_fields(half_plane(), EXTENT, points, torch.zeros(5_000, dtype=torch.long), NAMES)
    scatter = figure.axes[0].collections[-1]
    sizes = [len(c.get_offsets()) for c in figure.axes[0].collections if not isinstance(c, QuadContourSet)]
    assert sizes == [MAX_POINTS_PER_PANEL], scatter


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"grid_codes": torch.rand(4, 4)}, r"`grid_codes` must have shape \(any, any, any\), got \(4, 4\)"),
        ({"grid_codes": torch.rand(0, 4, 4)}, "must hold 1 to 48 latents"),
        ({"grid_codes": torch.rand(MAX_PANELS + 1, 2, 2)}, "must hold 1 to 48 latents"),
        ({"grid_codes": torch.rand(1, 1, 4)}, "grid of at least 2 x 2"),
        ({"grid_codes": torch.full((1, 4, 4), float("nan"))}, "`grid_codes` must be finite"),
        ({"extent": (1.0, -1.0, 0.0, 1.0)}, "`extent` must be"),
        ({"points": torch.rand(3, 3)}, r"`points` must have shape \(any, 2\), got \(3, 3\)"),
        ({"concepts": torch.tensor([0, 1])}, r"`concepts` must have shape \(3\), got \(2,\)"),
        ({"concepts": torch.tensor([0, 1, 2])}, "`concepts` must lie between -1 and 1, .* got values from 0 to 2"),
        ({"concepts": torch.tensor([0, 1, -2])}, "`concepts` must lie between -1 and 1"),
        ({"concepts": torch.rand(3)}, "`concepts` must hold integers, got dtype torch.float32"),
        ({"prototypes": torch.rand(2, 2)}, r"`prototypes` must have shape \(1, 2\), got \(2, 2\)"),
        ({"directions": torch.rand(1, 3)}, r"`directions` must have shape \(1, 2\), got \(1, 3\)"),
        ({"titles": ["a", "b"]}, r"`titles` must have 1 entries \(one per latent\), got 2"),
    ],
)
def test_errors(changes, message):
    arguments = {
        "grid_codes": half_plane(),
        "extent": EXTENT,
        "points": POINTS,
        "concepts": CONCEPTS,
        "concept_names": NAMES,
    }
    with pytest.raises(ValueError, match=message):
        receptive_fields(**(arguments | changes))
