"""Which activations of a vision model are read, held against the model's own hidden states."""

import numpy as np
import pytest
import torch
from torch import nn

from sae_lightning.data.activations.hosts import ImageHost, ModuleHost
from sae_lightning.data.activations.places import contexts_of
from sae_lightning.data.sources import ImageExample, Source
from tests.helpers import hosts

Image = pytest.importorskip("PIL.Image")
PREFIX = 5  # class token and four registers


def images(n=3, size=(80, 70)):
    generator = np.random.default_rng(0)
    return [
        ImageExample(f"i{i}", Image.fromarray(generator.integers(0, 256, (size[1], size[0], 3), np.uint8)), i)
        for i in range(n)
    ]


def read(host, examples, layers):
    return host.read(host.pieces(examples), list(layers), torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    pytest.importorskip("transformers")
    return hosts.dino(tmp_path_factory.mktemp("dino"))


@pytest.fixture(scope="module")
def states(folder):
    """Hidden states behind the second block, by transformers alone, `(3, 21, 16)`."""
    transformers = pytest.importorskip("transformers")
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    values = processor(images=[example.image for example in images()], return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        return model(values, output_hidden_states=True).hidden_states[2]


@pytest.mark.parametrize(
    ("tokens", "wanted"),
    [
        ("cls", lambda x: x[:, 0]),
        ("patches", lambda x: x[:, PREFIX:].flatten(0, 1)),
        ("mean", lambda x: x[:, PREFIX:].mean(1)),
        ("all", lambda x: x.flatten(0, 1)),
    ],
)
def test_dinov2_with_registers_is_read_where_it_is_asked_for(folder, states, tokens, wanted):
    host = ImageHost(folder, tokens=tokens)
    assert host.n_prefix == PREFIX
    found = read(host, images(), ["layer.1"] if "layer.1" in dict(host.model.named_modules()) else ["encoder.layer.1"])
    (activations,) = found.activations.values()
    expected = wanted(states)
    torch.testing.assert_close(activations, expected, rtol=1e-4, atol=1e-5)
    per_image = len(expected) // 3
    assert found.concepts.tolist() == found.examples.tolist() == [i for i in range(3) for _ in range(per_image)]
    patches = {"cls": [-1], "mean": [-1], "patches": [*range(16)], "all": [-1] * PREFIX + [*range(16)]}[tokens]
    assert found.starts.tolist() == patches * 3
    assert found.ends.tolist() == [-1 if patch < 0 else 16 for patch in patches] * 3


class Convolution(nn.Module):
    def __init__(self, channels: int = 3, width: int = 4) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(channels, width, 4, stride=4), nn.ReLU())
        self.head = nn.Linear(width, 2)

    def forward(self, x):
        return self.head(self.layers(x).mean((2, 3)))


def test_places_of_a_feature_map_are_patches():
    torch.manual_seed(0)
    module = Convolution()
    host = ModuleHost(module, 16, tokens="patches", n_prefix=0, mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.1])
    square = [example._replace(image=example.image.resize((16, 16))) for example in images()]
    found = read(host, square, ["layers.1", "layers.0"])
    pixels = torch.stack([torch.from_numpy(np.array(example.image)) for example in square]).permute(0, 3, 1, 2) / 255
    normal = (pixels - torch.tensor([0.5, 0.4, 0.3])[:, None, None]) / torch.tensor([0.2, 0.2, 0.1])[:, None, None]
    expected = module.layers(normal)
    torch.testing.assert_close(found.activations["layers.1"], expected.permute(0, 2, 3, 1).reshape(-1, 4).detach())
    assert found.starts.tolist() == [*range(16)] * 3
    whole = read(ModuleHost(module, 16, tokens="mean", n_prefix=0), square, ["layers.1"])
    assert whole.activations["layers.1"].shape == (3, 4)


def test_images_are_resized_and_cropped_to_their_middle():
    grey = ModuleHost(Convolution(1), 16, tokens="patches", n_prefix=0, channels=1)
    wide = Image.new("L", (64, 32))
    wide.paste(255, (16, 0, 48, 32))  # the middle square
    (piece,) = grey.pieces([ImageExample("w", wide)])
    assert piece.inputs["images"].shape == (1, 16, 16)
    assert piece.inputs["images"][0, :, 2:14].min() > 0.99


def test_weights_are_read_without_executing_code(tmp_path):
    torch.manual_seed(1)
    trained = Convolution()
    torch.save(trained.state_dict(), tmp_path / "weights.pt")
    host = ModuleHost(Convolution(), 16, str(tmp_path / "weights.pt"), tokens="patches", n_prefix=0)
    assert all(torch.equal(a, b) for a, b in zip(trained.parameters(), host.model.parameters(), strict=True))
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    with pytest.raises(ValueError, match=r"weights in .*other\.pt' must fit a Convolution, but do not"):
        ModuleHost(Convolution(), 16, str(tmp_path / "other.pt"), tokens="patches", n_prefix=0)
    torch.save(trained, tmp_path / "pickled.pt")  # a whole module: code
    with pytest.raises(ValueError, match="must fit a Convolution, but do not"):
        ModuleHost(Convolution(), 16, str(tmp_path / "pickled.pt"), tokens="patches", n_prefix=0)


def test_wrong_arguments(folder):
    with pytest.raises(ValueError, match="tokens must not be 'cls' for a model without tokens before its patches"):
        ModuleHost(Convolution(), 16, n_prefix=0)
    with pytest.raises(ValueError, match="mean must hold a number for each of 3 channels, but is"):
        ModuleHost(Convolution(), 16, tokens="mean", n_prefix=0, mean=[0.5])
    with pytest.raises(ValueError, match="image_size must be at least 1, but is 0"):
        ModuleHost(Convolution(), 0, tokens="mean", n_prefix=0)
    with pytest.raises(ValueError, match="n_prefix must be at least 0, but is -1"):
        ImageHost(folder, n_prefix=-1)
    host = ImageHost(folder, tokens="patches", n_prefix=21)
    with pytest.raises(ValueError, match="n_prefix must leave patches among the 21 tokens, but is 21"):
        host.read(
            host.pieces(images()), [layer for layer in dict(host.model.named_modules()) if layer][-1:], torch.float32
        )


def test_layers_with_different_numbers_of_tokens_have_no_labels_in_common():
    host = ModuleHost(Convolution(), 16, tokens="patches", n_prefix=0)
    with pytest.raises(
        ValueError, match=r"layers must return the same number of tokens, but return \{.*harvest them one by one"
    ):
        read(host, images(), ["layers.1", "head"])


class Images(Source[ImageExample]):
    def __init__(self) -> None:
        self.concept_names = ["0", "1", "2"]

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return images()[index]


def test_the_context_of_a_patch_is_its_box_in_what_the_model_saw(folder):
    host = ImageHost(folder, tokens="patches")
    assert host.crop == 56 / 64
    places = torch.tensor([1, 2]), torch.tensor([6, -1]).int(), torch.tensor([16, -1]).int()
    first, second = contexts_of(Images(), *places, crop=host.crop)
    assert first.box == (0.5, 0.25, 0.75, 0.5)  # second row, third column of four
    assert second.box is None
    assert first.image.size == (62, 62)  # 7/8 of the shorter side
    assert contexts_of(Images(), *places, crop=None)[0].image.size == (80, 70)
