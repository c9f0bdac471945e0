"""Images as training data: splits, views, and batches that depend on the seed and the step alone."""

import numpy as np
import pytest
import torch
from PIL import Image

from sae_lightning.data import ImageDataModule
from sae_lightning.data.images.datamodule import ViewStream
from sae_lightning.data.images.views import RandomViews, ViewBatch
from sae_lightning.data.sources import IdxImages, ImageFolder
from tests.helpers.images import stripes, write_idx, write_mnist_like


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_mnist_like(tmp_path_factory.mktemp("mnist"))


def data(folder, **changes):
    return ImageDataModule(str(folder), **{"n_val": 8, "batch_size": 16, "eval_batch_size": 10, "seed": 1, **changes})


def batches(loader, n=None):
    found = []
    for batch in loader:
        found.append(batch)
        if len(found) == n:
            break
    return found


def test_a_folder_of_idx_files_is_split(folder):
    module = data(folder, concept_names=["rows", "columns"])
    assert (module.image_size, module.channels, module.concept_names) == (8, 1, ["rows", "columns"])
    sizes = {split: len(module.split(split)) for split in ("train", "val", "test")}
    assert sizes == {"train": 56, "val": 8, "test": 24}
    pixels, labels = stripes(64, seed=64)
    found = torch.cat([module.split("val").images, module.split("train").images])
    whole = {(image.numpy().tobytes(), int(label)) for image, label in zip(pixels, labels, strict=True)}
    concepts = torch.cat([module.split("val").concepts, module.split("train").concepts])
    assert {(image.numpy().tobytes(), int(label)) for image, label in zip(found, concepts, strict=True)} == whole
    assert torch.equal(module.split("test").images[:, 0], stripes(24, seed=24)[0])


def test_training_batches_depend_on_seed_and_step_alone(folder):
    first, second = (batches(data(folder).train_dataloader()) for _ in range(2))
    assert len(first) == 3
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.views, other.views)
        assert one.seed == other.seed
        assert one.views.shape == (32, 1, 8, 8)
        assert one.images.shape == (16, 1, 8, 8)
        assert 0 <= one.views.min() < one.views.max() <= 1
    assert not torch.equal(first[0].views[:16], first[0].views[16:])
    assert len({batch.seed for batch in first}) == 3
    assert not torch.equal(first[0].views, batches(data(folder, seed=2).train_dataloader(), 1)[0].views)


def test_reading_goes_on_where_a_checkpoint_stood(folder):
    whole = data(folder).train_dataloader()
    expected = batches(whole) + batches(whole)
    begun = data(folder).train_dataloader()
    batches(begun, 2)
    resumed = data(folder).train_dataloader()
    resumed.load_state_dict(begun.state_dict())
    for one, other in zip(expected[2:5], batches(resumed), strict=True):
        assert torch.equal(one.views, other.views)


class Still:
    """Views that are the images themselves."""

    def pairs(self, images, generator):
        return ViewBatch(images, images, 0)


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_an_epoch_shows_each_image_once_in_an_order_of_its_own(n_ranks):
    images = torch.arange(20)
    ranks = [ViewStream(images, Still(), 10 // n_ranks, 1, rank, n_ranks) for rank in range(n_ranks)]
    epochs = [
        torch.cat([rank[2 * epoch + step, epoch, 10 * step].views for step in (0, 1) for rank in ranks])
        for epoch in (0, 1)
    ]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, images)
    assert not torch.equal(*epochs)


def test_held_out_views_are_the_same_every_time(folder):
    module = data(folder)
    for loader, n in ((module.val_dataloader(), 8), (module.test_dataloader(), 24)):
        once, again = batches(loader), batches(loader)
        assert sum(len(batch.views) for batch in once) == 2 * n
        assert all(torch.equal(one.views, other.views) for one, other in zip(once, again, strict=True))
    predicted = batches(module.predict_dataloader())
    assert torch.equal(torch.cat([batch.images for batch in predicted]), module.split("test").images)


def test_a_view_may_be_the_image_or_its_mirror_image():
    x = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    still = RandomViews(crop=1.0, flip=0.0, jitter=0.0)
    mirrored = RandomViews(crop=1.0, flip=1.0, jitter=0.0)
    draw = [views.of(x, torch.Generator().manual_seed(3)) for views in (still, mirrored)]
    torch.testing.assert_close(draw[0].flip(-1).mean(), draw[1].mean(), atol=0.05, rtol=0)
    steep = torch.linspace(0, 1, 6).expand(3, 1, 6, 6)  # brighter to the right
    assert (still.of(steep, torch.Generator().manual_seed(3)).diff(dim=-1) >= 0).all()
    assert (mirrored.of(steep, torch.Generator().manual_seed(3)).diff(dim=-1) <= 0).all()


@pytest.mark.parametrize("crop", [0.2, 0.7, 1.0])
def test_a_view_shows_a_part_of_the_image_and_nothing_outside(crop):
    ramp = torch.linspace(0.2, 0.8, 32).expand(500, 1, 32, 32)
    view = RandomViews(crop=crop, flip=0.0, jitter=0.0).of(ramp, torch.Generator().manual_seed(0))
    assert view.min() >= 0.2 - 1e-6
    assert view.max() <= 0.8 + 1e-6
    shown = (view[..., -1] - view[..., 0]).mean((1, 2)) / 0.6  # the share of the width
    assert shown.max() <= 1 + 1e-6
    assert shown.min() >= (crop / 1.25) ** 0.5 - 0.05


def test_light_changes_within_its_bounds():
    grey = torch.full((2_000, 1, 4, 4), 0.5)
    view = RandomViews(crop=1.0, flip=0.0, jitter=0.4).of(grey, torch.Generator().manual_seed(0)).mean((1, 2, 3))
    assert view.min() >= 0.3 - 1e-6
    assert view.max() <= 0.7 + 1e-6
    assert view.mean().item() == pytest.approx(0.5, abs=0.01)


def test_sources_of_any_size_are_scaled_and_broken_images_left_out(tmp_path):
    for i in range(9):
        path = tmp_path / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (10 + i, 20), (20 * i, 0, 255)).save(path)
    (tmp_path / "cat" / "0.png").write_bytes(b"broken")
    module = ImageDataModule(train=ImageFolder(str(tmp_path)), n_val=2, n_test=3, batch_size=2, image_size=8, seed=0)
    assert (module.image_size, module.channels, module.concept_names) == (8, 3, ["cat", "dog"])
    with pytest.warns(UserWarning, match=r"1 of 10 images are left out: .*cat/0.png' cannot be read"):
        train = module.split("train")
    assert train.images.shape == (4, 3, 8, 8)
    assert train.images.dtype == torch.uint8
    assert (len(module.split("val")), len(module.split("test"))) == (2, 3)
    for image, concept in zip(train.images, train.concepts, strict=True):
        red, green, blue = image.float().mean((1, 2)).tolist()
        assert (green, blue) == (0, 255)
        assert int(round(red / 20) % 2 == 0) == concept
    grey = ImageDataModule(train=ImageFolder(str(tmp_path)), n_val=2, n_test=3, image_size=8, channels=1)
    with pytest.warns(UserWarning, match="left out"):
        assert grey.split("val").images.shape == (2, 1, 8, 8)


def test_idx_images_are_read_alike_directly_and_one_by_one(tmp_path):
    path = write_idx(tmp_path / "images", stripes(12)[0])
    direct = ImageDataModule(train=IdxImages(path), n_val=2, n_test=2, seed=0).split("train").images
    coloured = ImageDataModule(train=IdxImages(path), n_val=2, n_test=2, channels=3, seed=0).split("train").images
    assert torch.equal(coloured, direct.expand(-1, 3, -1, -1))
    assert np.array_equal(direct.shape, (8, 1, 8, 8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_val": 0}, "n_val must be at least 1, but is 0"),
        ({"channels": 2}, "channels must be 1 or 3, but is 2"),
        ({"crop": 0.0}, "crop must lie above 0 and be at most 1, but is 0.0"),
        ({"flip": 1.5}, "flip must lie between 0 and 1, but is 1.5"),
        ({"jitter": 1.0}, "jitter must be at least 0 and below 1, but is 1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, but is 0"),
        ({"concept_names": ["rows"]}, "concept_names must name all classes"),
    ],
)
def test_bad_arguments_are_refused(folder, changes, message):
    with pytest.raises(ValueError, match=message):
        data(folder, **changes)


def test_data_that_do_not_fit_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="one of folder and train must be given"):
        ImageDataModule()
    with pytest.raises(FileNotFoundError, match=r"folder must hold train-images-idx3-ubyte or .*\.gz, but"):
        data(tmp_path)
    source = IdxImages(write_idx(tmp_path / "images", stripes(8)[0]))
    with pytest.raises(ValueError, match="test must be None where folder is given"):
        data(folder, test=source)
    with pytest.raises(ValueError, match="concept_names must be None for a source"):
        ImageDataModule(train=source, concept_names=["a"])
    labelled = IdxImages(str(tmp_path / "images"), write_idx(tmp_path / "labels", stripes(8)[1]))
    with pytest.raises(ValueError, match="train and test must have the same classes"):
        ImageDataModule(train=source, test=labelled)
    with pytest.raises(ValueError, match="every split must hold an image, but 8 images give -2 for training"):
        ImageDataModule(train=source, n_val=5, n_test=5).split("val")
    with pytest.raises(ValueError, match="the training split must hold at least one batch"):
        ImageDataModule(train=source, n_val=2, n_test=2, batch_size=5).train_dataloader()
    for name in ("a.png", "b.png"):
        (tmp_path / "bad").mkdir(exist_ok=True)
        (tmp_path / "bad" / name).write_bytes(b"")
    with pytest.raises(ValueError, match="a source must hold an image that can be read, but none of its 2 can"):
        ImageDataModule(train=ImageFolder(str(tmp_path / "bad"), labelled=False))
