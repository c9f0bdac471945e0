"""Images with their patches marked."""

import pytest
from matplotlib.patches import Rectangle
from PIL import Image

from sae_lightning.plotting import example_images


def test_patches_lie_where_the_boxes_say():
    images = [Image.new("L", (20, 20)), Image.new("RGB", (40, 20)), *[Image.new("RGBA", (8, 16))] * 3]
    boxes = [(0.0, 0.25, 0.5, 1.0), (0.5, 0.0, 1.0, 1.0), None, None, (0.0, 0.0, 1.0, 0.5)]
    (axes,) = example_images(images, boxes, list("abcde")).axes
    marks = [patch for patch in axes.patches if isinstance(patch, Rectangle)]
    extents = [image.get_extent() for image in axes.images]  # left, right, bottom, top
    assert len(extents) == 5
    for mark, i in zip(marks, (0, 1, 4), strict=True):
        left, right, bottom, top = extents[i]
        box = boxes[i]
        assert mark.get_x() == pytest.approx(left + box[0] * (right - left))
        assert mark.get_y() == pytest.approx(top + box[1] * (bottom - top))
        assert mark.get_width() == pytest.approx((box[2] - box[0]) * (right - left))
        assert mark.get_height() == pytest.approx((box[3] - box[1]) * (bottom - top))
    assert [text.get_text() for text in axes.texts] == list("abcde")
    assert extents[1][1] - extents[1][0] == pytest.approx(2 * abs(extents[1][2] - extents[1][3]))


def test_wrong_arguments():
    image = Image.new("L", (2, 2))
    with pytest.raises(ValueError, match="`images` must hold at least one image, got none"):
        example_images([], [], [])
    with pytest.raises(ValueError, match=r"`boxes` must have 1 entries \(one per image\), got 0"):
        example_images([image], [], ["a"])
    with pytest.raises(ValueError, match="`captions` must have 1 entries"):
        example_images([image], [None], [])
