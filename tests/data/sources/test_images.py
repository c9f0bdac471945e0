"""Sources of images: IDX files, folders, Hugging Face datasets."""

import gzip

import numpy as np
import pytest
import torch
from PIL import Image

from sae_lightning.data.sources import HuggingFaceImages, IdxImages, ImageFolder, UnreadableError
from tests.helpers.images import idx_bytes, stripes, write_idx

PIXELS = torch.arange(24).view(3, 2, 4) * 10
LABELS = torch.tensor([2, 0, 1])


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_are_read(tmp_path, ending):
    images, labels = write_idx(tmp_path / f"images{ending}", PIXELS), write_idx(tmp_path / f"labels{ending}", LABELS)
    source = IdxImages(images, labels, ["shirt", "coat", "bag"])
    assert len(source) == 3
    assert torch.equal(source.pixels, PIXELS.to(torch.uint8))
    document, image, concept = source[1]
    assert (document, image.mode, image.size, concept) == (f"images{ending}#1", "L", (4, 2), 0)
    assert np.array_equal(np.asarray(image), PIXELS[1].numpy())
    assert source.concept_names == ["shirt", "coat", "bag"]
    assert IdxImages(images, labels).concept_names == ["C0", "C1", "C2"]
    with pytest.raises(IndexError):
        source[3]


def test_idx_images_need_no_labels(tmp_path):
    source = IdxImages(write_idx(tmp_path / "images", PIXELS))
    assert source.concept_names == []
    assert [example.concept for example in source] == [-1, -1, -1]


GOOD = idx_bytes(PIXELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must be an IDX file, which begins with two zero bytes"),
        (b"\x89PNG and more", "must be an IDX file, which begins with two zero bytes"),
        (idx_bytes(PIXELS, kind=0x0D), "must hold unsigned bytes, IDX type 0x08, but holds type 0x0d"),
        (idx_bytes(LABELS), "must have 3 dimensions, but has 1"),
        (idx_bytes(torch.zeros(0, 2, 4)), r"must hold a value, but its header gives it the shape \(0, 2, 4\)"),
        (GOOD[:-1], r"must hold 24 values, as its header says, but holds 23 \(truncated\?\)"),
        (GOOD[:10], r"but its header gives it the shape|must hold .* values"),
        (GOOD + b"x", "must hold 24 values, as its header says, but holds more"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"few", "but holds 3"),
        (gzip.compress(GOOD, mtime=0)[:-12], "cannot be unpacked"),
        (gzip.compress(GOOD, mtime=0)[:15] + b"zzzz" + gzip.compress(GOOD, mtime=0)[19:], "cannot be unpacked"),
    ],
)
def test_broken_idx_files_are_refused_by_name(tmp_path, content, message):
    (tmp_path / "broken").write_bytes(content)
    with pytest.raises(ValueError, match=f"broken' {message}" if message[0] in "mc" else message):
        IdxImages(str(tmp_path / "broken"))


def test_labels_must_fit_the_images(tmp_path):
    images, labels = write_idx(tmp_path / "images", PIXELS), write_idx(tmp_path / "labels", LABELS)
    few = write_idx(tmp_path / "few", LABELS[:2])
    with pytest.raises(ValueError, match=r"labels must be as many as the 3 images in .*images', but .*few' holds 2"):
        IdxImages(images, few)
    with pytest.raises(ValueError, match=r"there are 2 names, and labels in .*labels' reach 2"):
        IdxImages(images, labels, ["a", "b"])
    with pytest.raises(ValueError, match="concept_names must be None without labels"):
        IdxImages(images, None, ["a"])
    with pytest.raises(FileNotFoundError, match=r"there is no file .*missing"):
        IdxImages(str(tmp_path / "missing"))


@pytest.fixture
def folder(tmp_path):
    """Two classes, one of them with a subfolder, and what is no image or hidden."""
    files = {"cat/b.png": "RGB", "cat/deep/a.JPG": "L", "dog/c.bmp": "L", "dog/d.webp": "RGB", ".hidden/e.png": "L"}
    for i, (name, mode) in enumerate(files.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new(mode, (5, 4), 40 * i if mode == "L" else (40 * i, 0, 0)).save(tmp_path / name)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_is_read_in_the_order_of_names(folder):
    source = ImageFolder(str(folder))
    assert source.concept_names == ["cat", "dog"]
    found = [(example.document, example.image.mode, example.concept) for example in source]
    assert found == [
        ("cat/b.png", "RGB", 0),
        ("cat/deep/a.JPG", "L", 0),
        ("dog/c.bmp", "L", 1),
        ("dog/d.webp", "RGB", 1),
    ]
    assert all(example.image.size == (5, 4) for example in source)


def test_a_folder_without_classes(folder):
    flat = ImageFolder(str(folder / "cat"), labelled=False)
    assert [example.document for example in flat] == ["b.png", "deep/a.JPG"]
    assert flat.concept_names == []
    assert {example.concept for example in flat} == {-1}
    with pytest.raises(ValueError, match=r"labelled must be false where .* but is true, and 'b.png' lies in"):
        ImageFolder(str(folder / "cat"))


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n broken"])
def test_an_image_that_cannot_be_read_is_named_when_it_is_read(folder, content):
    (folder / "cat" / "a.png").write_bytes(content)
    source = ImageFolder(str(folder))
    with pytest.raises(UnreadableError, match=r"cat/a.png' cannot be read"):
        source[0]
    assert source[1].document == "cat/b.png"


def test_truncated_images_and_bombs_are_unreadable(folder, monkeypatch):
    path = folder / "cat" / "a.png"
    Image.effect_noise((64, 64), 50).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    source = ImageFolder(str(folder))
    with pytest.raises(UnreadableError, match="truncated"):
        source[0]
    path.write_bytes(whole)
    assert source[0].image.size == (64, 64)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)
    with pytest.raises(UnreadableError, match="decompression bomb"):
        source[0]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"), [("RGBA", (10, 20, 30, 40), "RGB"), ("P", 3, "RGB"), ("1", 1, "L"), ("LA", 5, "L")]
)
def test_other_modes_become_grey_or_rgb(tmp_path, mode, colour, expected):
    Image.new(mode, (3, 3), colour).save(tmp_path / "a.png")
    assert ImageFolder(str(tmp_path), labelled=False)[0].image.mode == expected


def test_sixteen_bits_of_grey_are_scaled(tmp_path):
    Image.fromarray(np.array([[0, 257 * 100], [257 * 200, 65_535]], np.uint16)).save(tmp_path / "a.png")
    image = ImageFolder(str(tmp_path), labelled=False)[0].image
    assert np.asarray(image).tolist() == [[0, 100], [200, 255]]


def test_images_are_turned_as_the_camera_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    Image.new("L", (4, 2)).save(tmp_path / "a.jpg", exif=exif)
    assert ImageFolder(str(tmp_path), labelled=False)[0].image.size == (2, 4)


def test_folders_without_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="root must hold images"):
        ImageFolder(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="root must be a folder"):
        ImageFolder(str(tmp_path / "none"))


@pytest.fixture
def saved(tmp_path):
    """A dataset with two splits that `save_to_disk` wrote."""
    datasets = pytest.importorskip("datasets")
    pixels, _ = stripes(4)
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["up", "down"]), "n": datasets.Value("int64")}
    )
    rows = {"picture": [Image.fromarray(p.numpy()) for p in pixels], "kind": [1, 0, None, 1], "n": [1, 2, 3, 4]}
    rows["picture"][3] = None
    whole = datasets.Dataset.from_dict(rows, features=features)
    datasets.DatasetDict({"train": whole, "test": whole.select([1])}).save_to_disk(str(tmp_path / "saved"))
    return str(tmp_path / "saved"), pixels


def test_a_saved_hugging_face_dataset(saved):
    path, pixels = saved
    source = HuggingFaceImages(path, "picture", "kind")
    assert len(source) == 4
    assert source.concept_names == ["up", "down"]
    for i, concept in enumerate([1, 0, -1]):
        assert source[i].document == f"{path}/train#{i}"
        assert source[i].concept == concept
        assert np.array_equal(np.asarray(source[i].image), pixels[i].numpy())
    with pytest.raises(UnreadableError, match=r"train#3' cannot be read: it is missing"):
        source[3]
    with pytest.raises(IndexError):
        source[4]
    unlabelled = HuggingFaceImages(path, "picture", split="test")
    assert [example.concept for example in unlabelled] == [-1]
    assert unlabelled.concept_names == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_column": "image"}, r"image_column must be one of \['picture', 'kind', 'n'\] .* but is 'image'"),
        ({"image_column": "n"}, "image_column must hold images, but 'n' .* is of type Value"),
        ({"label_column": "label"}, "label_column must be one of .* but is 'label'"),
        ({"label_column": "n"}, "label_column must be of type ClassLabel .* but 'n'"),
        ({"split": "dev"}, r"split must be one of \['train', 'test'\] .* but is 'dev'"),
    ],
)
def test_wrong_columns_and_splits_are_refused(saved, arguments, message):
    with pytest.raises(ValueError, match=message):
        HuggingFaceImages(saved[0], **{"image_column": "picture", **arguments})


def test_a_dataset_that_cannot_be_loaded_is_named(tmp_path, monkeypatch):
    pytest.importorskip("datasets")
    (tmp_path / "state.json").write_text("no json")
    with pytest.raises(ValueError, match=r"dataset .* cannot be loaded"):
        HuggingFaceImages(str(tmp_path))
