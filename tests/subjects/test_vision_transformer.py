"""The vision transformer: patches, layers, gradients; and the contrastive loss."""

import math

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from sae_lightning.data.activations.layers import activations_at
from sae_lightning.subjects.contrastive import ProjectionHead, contrastive_loss, random_subsets
from sae_lightning.subjects.vision_transformer import PatchEmbedding, VisionTransformer


def model(**changes):
    torch.manual_seed(0)
    sizes = {"image_size": 12, "channels": 3, "patch_size": 4, "width": 16, "n_layers": 2, "n_heads": 2}
    return VisionTransformer(**{**sizes, **changes})


def images(n=2, channels=3, size=12, seed=1):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def test_the_patch_embedding_is_an_unfold_and_a_product():
    torch.manual_seed(0)
    embed = PatchEmbedding(image_size=12, channels=3, patch_size=4, width=16)
    for parameter in embed.parameters():
        torch.nn.init.normal_(parameter)
    x = images()
    unfolded = F.unfold((x - 0.5) / 0.25, kernel_size=4, stride=4)  # (n, channels * 16, patches)
    projected = unfolded.transpose(1, 2) @ embed.project.weight.T + embed.project.bias
    expected = torch.cat([embed.cls.expand(2, 1, 16), projected], 1) + embed.positions
    torch.testing.assert_close(embed(x), expected, atol=1e-5, rtol=1e-5)


def test_every_layer_returns_the_class_token_and_the_patches():
    made = model()
    for layer in ("embed", "blocks.0", "blocks.1", "norm"):
        assert activations_at(made, layer, images()).shape == (2, 10, 16), layer
    assert torch.equal(activations_at(made, "norm", images()), made(images()))


def test_bytes_are_read_as_shares():
    made = model()
    pixels = (images() * 255).to(torch.uint8)
    torch.testing.assert_close(made(pixels), made(pixels / 255))


def test_patches_that_are_left_out_change_nothing():
    made, x = model(), images()
    keep = torch.tensor([[0, 4], [7, 8]])
    before = made(x, keep)
    assert before.shape == (2, 3, 16)
    changed = x.clone()
    changed[0, :, 4:8, :4] = 0  # patch 3 of the first image
    torch.testing.assert_close(made(changed, keep), before)
    changed[1, :, 8:, 8:] = 0  # patch 8 of the second
    after = made(changed, keep)
    torch.testing.assert_close(after[0], before[0])
    assert not torch.allclose(after[1], before[1])
    everything = torch.arange(9).expand(2, -1)
    torch.testing.assert_close(made(x, everything), made(x))


def test_every_patch_and_weight_matters_to_the_class_token():
    made = model(n_layers=3)
    x = images().requires_grad_()
    made(x)[:, 0].sin().sum().backward()
    assert (x.grad.view(2, 3, 3, 4, 3, 4).abs().amax((1, 3, 5)) > 0).all()
    assert all(parameter.grad.abs().sum() > 0 for parameter in made.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 10}, "image_size must be a multiple of patch_size = 4, but is 10"),
        ({"n_heads": 3}, "width must be a multiple of n_heads = 3, but is 16"),
        ({"channels": 0}, "channels must be at least 1, but is 0"),
        ({"n_layers": 0}, "n_layers must be at least 1, but is 0"),
    ],
)
def test_bad_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


@pytest.mark.parametrize("x", [images(channels=1), images(size=16), images()[0]])
def test_other_images_are_refused(x):
    with pytest.raises(ValueError, match=r"images must have shape \(n, 3, 12, 12\), not"):
        model()(x)


def test_the_contrastive_loss_is_its_formula():
    z = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    tau = 0.3
    total = 0.0
    for i in range(8):
        cosines = [float(F.cosine_similarity(z[i], z[j], dim=0)) for j in range(8)]
        others = sum(math.exp(cosines[j] / tau) for j in range(8) if j != i)
        total -= math.log(math.exp(cosines[(i + 4) % 8] / tau) / others)
    assert contrastive_loss(z, tau).item() == pytest.approx(total / 8, rel=1e-5)


def test_the_contrastive_loss_is_small_where_views_agree_and_differ_from_the_rest():
    z = torch.eye(4).repeat(2, 1)
    assert contrastive_loss(z, 0.05) < 1e-6
    assert contrastive_loss(torch.ones(8, 3), 0.5).item() == pytest.approx(math.log(7))
    assert contrastive_loss(10 * z, 0.5) == contrastive_loss(z, 0.5)


def test_the_head_projects():
    assert ProjectionHead(6, 8, 4)(torch.randn(5, 6)).shape == (5, 4)


def test_subsets_are_ordered_complete_and_drawn_evenly():
    drawn = random_subsets(2_000, 6, 3, torch.Generator().manual_seed(0))
    assert drawn.shape == (2_000, 3)
    assert (drawn[:, 1:] > drawn[:, :-1]).all()
    assert (drawn.flatten().bincount(minlength=6) / 2_000 - 0.5).abs().max() < 0.05
    assert torch.equal(drawn, random_subsets(2_000, 6, 3, torch.Generator().manual_seed(0)))
