"""Contexts are cut to what a page has room for."""

import base64
import io

import pytest
from PIL import Image

from sae_lightning.data.contexts import ImageContext, TextContext
from sae_lightning.report import Picture, Text, make_excerpt, read_excerpts, read_figures
from sae_lightning.report.excerpts import THUMBNAIL_SIZE, data_uri, thumbnail


def opened(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_short_texts_stay_as_they_are():
    assert make_excerpt(TextContext("the\n", " cat", " sat")) == Text("the\n", " cat", " sat")


def test_long_texts_are_cut_between_words_on_both_sides():
    excerpt = make_excerpt(TextContext("before " * 100, "token", " after" * 100))
    assert excerpt.before.startswith("… before")
    assert excerpt.before.endswith("before ")
    assert excerpt.after.startswith(" after")
    assert excerpt.after.endswith("after …")
    assert len(excerpt.before) < 170
    assert len(excerpt.after) < 110
    assert len(make_excerpt(TextContext("x" * 999, "y" * 999, "z" * 999)).token) == 160


@pytest.mark.parametrize("context", [TextContext("a whole text", "", ""), TextContext("", "", "a whole text")])
def test_a_whole_text_has_no_token(context):
    assert make_excerpt(context) == Text("", "", "a whole text")


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "LA", "I", "F"])
def test_images_of_every_kind_become_small(mode):
    large, tiny = Image.new(mode, (640, 320)), Image.new(mode, (28, 28))
    small = opened(thumbnail(large))
    assert small.size == (THUMBNAIL_SIZE, THUMBNAIL_SIZE // 2)
    assert small.format == "JPEG"
    assert large.size == (640, 320)
    assert opened(thumbnail(tiny)).size == (28, 28)
    assert opened(thumbnail(tiny)).format == "PNG"


def test_what_is_transparent_is_white():
    assert opened(thumbnail(Image.new("RGBA", (8, 8), (0, 0, 0, 0)))).convert("RGB").getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_keep_their_range():
    image = Image.new("I;16", (2, 1))
    image.putpixel((0, 0), 65535)
    small = opened(thumbnail(image))
    assert (small.getpixel((0, 0)), small.getpixel((1, 0))) == (255, 0)


def test_positions_are_asked_for_once_and_until_there_is_no_room():
    asked = []

    def contexts(positions):
        asked.extend(positions)
        return [TextContext("", "x" * 100, "") for _ in positions]

    found, size = read_excerpts([5, 3, 5, 9, 3], contexts, max_bytes=1000)
    assert sorted(asked) == [3, 5, 9]
    assert (sorted(found), size) == ([3, 5, 9], 300)
    found, size = read_excerpts(range(1000), contexts, max_bytes=250)
    assert (sorted(found), size) == ([0, 1], 200)
    assert read_excerpts([1], contexts, max_bytes=0) == ({}, 0)


def test_an_image_takes_room_once():
    image = Image.new("L", (20, 20))
    size = len(thumbnail(image)) + 40
    found, used = read_excerpts(range(10), lambda p: [ImageContext(image, (0, 0, 1, 1)) for _ in p], size + 3 * 40)
    assert len(found) == 4
    assert used == size + 3 * 40
    assert all(isinstance(excerpt, Picture) for excerpt in found.values())


def test_figures_are_read_while_there_is_room(tmp_path):
    for name in ("b", "a_b"):
        (tmp_path / f"{name}.png").write_bytes(b"x" * 30)
    uri = data_uri("image/png", b"x" * 30)
    folders = {"": tmp_path, "spade": tmp_path, "none": tmp_path / "missing"}
    assert read_figures(folders, 1e6) == [("a b", uri), ("b", uri), ("spade: a b", uri), ("spade: b", uri)]
    assert len(read_figures(folders, 2 * len(uri))) == 2
    assert read_figures(folders, 0) == []
