"""The vision model: its loss, its checkpoints, what it refuses, and what is read out of its features."""

import pytest
import torch

from sae_lightning import load_module, load_sae
from sae_lightning.callbacks.features import FeaturesReport, knn_accuracy, linear_accuracy
from sae_lightning.data import ImageDataModule, read_vision_model
from sae_lightning.data.images.views import ViewBatch
from sae_lightning.subjects import VisionModel
from sae_lightning.subjects.contrastive import contrastive_loss
from tests.helpers.images import write_mnist_like
from tests.helpers.trainers import quiet_trainer

TINY = {"image_size": 8, "patch_size": 4, "width": 16, "n_layers": 1, "n_heads": 2, "hidden": 16, "projected": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_mnist_like(tmp_path_factory.mktemp("mnist"), n_train=256)


def data(folder, **changes):
    return ImageDataModule(str(folder), **{"n_val": 32, "batch_size": 32, "seed": 1, **changes})


def test_the_loss_compares_projected_class_tokens_and_decodes_them():
    torch.manual_seed(0)
    model = VisionModel(**TINY, temperature=0.5)
    views = torch.rand(6, 1, 8, 8)
    model.head(torch.randn(64, 16))  # statistics of batch normalisation
    model.eval()
    hidden = model.transformer(views)[:, 0]
    images = torch.rand(3, 1, 8, 8)
    expected = contrastive_loss(model.head(hidden), 0.5)
    for i in range(6):
        error = model.decoder(hidden[i]).view(8, 8) - (images[i % 3, 0] - 0.5) / 0.25
        expected = expected + 2.5 * error.square().mean() / 6
    torch.testing.assert_close(model._loss(ViewBatch(views, images, 1), 4), expected)
    torch.testing.assert_close(model(views), hidden)


def test_without_reconstruction_there_is_no_decoder():
    model = VisionModel(**TINY, reconstruction=0.0, keep=1.0)
    assert not list(model.decoder.parameters())
    views = torch.rand(6, 1, 8, 8)
    model._loss(ViewBatch(views, views[:3], 1), 4).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_batch_says_which_patches_are_read():
    torch.manual_seed(0)
    model = VisionModel(**TINY, keep=0.5).eval()
    assert model.n_kept == 2
    views = torch.rand(6, 1, 8, 8)
    first, again, other = (model._loss(ViewBatch(views, views[:3], seed), 2) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_training_lowers_the_loss_and_counts_images(folder):
    torch.manual_seed(0)
    model, source = VisionModel(**TINY, keep=1.0), data(folder)
    run = quiet_trainer(max_epochs=12, gradient_clip_val=1.0, callbacks=[FeaturesReport(n_labelled=64, k=5)])
    before = run.validate(model, source, verbose=False)[0]
    run.fit(model, source)
    after = run.validate(model, source, verbose=False)[0]
    assert after["val/loss"] < before["val/loss"] - 0.5
    assert after["val/knn_accuracy"] > 0.9
    assert after["val/linear_accuracy"] > 0.9
    assert model.samples_seen == 12 * 7 * 32


def test_a_checkpoint_is_loaded_back(folder, tmp_path):
    model, source = VisionModel(**TINY), data(folder)
    run = quiet_trainer(max_epochs=1)
    run.fit(model, source)
    run.save_checkpoint(tmp_path / "vit.ckpt")
    loaded = load_module(tmp_path / "vit.ckpt")
    assert isinstance(loaded, VisionModel)
    assert loaded.samples_seen == model.samples_seen > 0
    images = source.split("test").images
    assert torch.equal(loaded(images), model.eval()(images))
    transformer = read_vision_model(tmp_path / "vit.ckpt")
    assert not transformer.training
    assert not any(parameter.requires_grad for parameter in transformer.parameters())
    assert torch.equal(transformer(images)[:, 0], model(images))
    predicted = torch.cat(quiet_trainer(max_epochs=1).predict(model, source))
    torch.testing.assert_close(predicted, model(images))
    with pytest.raises(ValueError, match="must be one of an SAE, but is one of a VisionModel"):
        load_sae(tmp_path / "vit.ckpt")
    with pytest.raises(ValueError, match="the checkpoint must be of image_size = 12, as the data are, but is of 8"):
        VisionModel(**{**TINY, "image_size": 12}).on_load_checkpoint(torch.load(tmp_path / "vit.ckpt"))


def test_what_is_no_vision_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is none at .*train a vision model first .*configs/vision/vit.yaml"):
        read_vision_model(tmp_path / "none.ckpt")
    (tmp_path / "bad.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="must be one of a VisionModel, but is not"):
        read_vision_model(tmp_path / "bad.ckpt")
    torch.save({"sae_lightning": {"init_args": {"width": 8}}, "state_dict": {}}, tmp_path / "lm.ckpt")
    with pytest.raises(ValueError, match="must be one of a VisionModel, but is not"):
        read_vision_model(tmp_path / "lm.ckpt")


def test_images_of_another_size_are_refused(folder):
    model = VisionModel(**{**TINY, "image_size": 12})
    with pytest.raises(ValueError, match=r"model.image_size must equal data.image_size, but they are 12 and 8"):
        quiet_trainer(max_epochs=1).fit(model, data(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 0.0}, "keep must lie above 0 and be at most 1, but is 0.0"),
        ({"temperature": 0.0}, "temperature must be above 0, but is 0.0"),
        ({"reconstruction": -1.0}, "reconstruction must be at least 0, but is -1.0"),
        ({"hidden": 0}, "hidden must be at least 1, but is 0"),
        ({"patch_size": 3}, "image_size must be a multiple of patch_size = 3, but is 8"),
    ],
)
def test_bad_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        VisionModel(**{**TINY, **changes})


def clusters(n, seed):
    """Three clusters; the third lies between the others."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(3, (n,), generator=generator)
    centres = torch.tensor([[4.0, 0.0, 1.0], [0.0, 4.0, 1.0], [3.0, 3.0, 1.0]])
    return centres[classes] + 0.1 * torch.randn(n, 3, generator=generator), classes


def test_classes_are_told_by_neighbours_and_by_a_line():
    known, asked = clusters(60, 0), clusters(40, 1)
    assert knn_accuracy(*known, *asked, 3, k=5) == 1
    assert linear_accuracy(*known, *asked, 3) == 1
    wrong = (asked[1] + 1) % 3
    assert knn_accuracy(*known, asked[0], wrong, 3, k=5) == 0
    assert linear_accuracy(*known, asked[0], wrong, 3) == 0
    with torch.inference_mode():
        assert linear_accuracy(*clusters(60, 0), *clusters(40, 1), 3) == 1


def test_as_many_neighbours_vote_as_there_are():
    known, classes = clusters(4, 2)
    assert 0 <= knn_accuracy(known, classes, known, classes, 3, k=50) <= 1


@pytest.mark.parametrize("name", ["n_labelled", "k"])
def test_the_reports_arguments_are_checked(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, but is 0"):
        FeaturesReport(**{name: 0})


def test_gradients_are_clipped_under_mixed_precision(folder):
    model = VisionModel(**TINY, keep=1.0)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    quiet_trainer(max_epochs=1, precision="bf16-mixed", gradient_clip_val=1.0, max_steps=2).fit(model, data(folder))
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
