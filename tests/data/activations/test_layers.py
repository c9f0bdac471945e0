"""Reading and replacing what a layer returns."""

import pytest
import torch
from torch import nn

from sae_lightning.data.activations.layers import activations_at, activations_of, find_layer, replaced


class Pair(nn.Module):
    """Returns a tuple, as the blocks of many language models do."""

    def forward(self, x):
        return x + 1, "cache"


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.pair = Pair()
        self.last = nn.Linear(3, 2)
        self.unused = nn.Identity()
        self.words = nn.Identity()
        self.reached_end = 0

    def forward(self, x, scale=1.0):
        x = self.pair(self.first(x * scale))[0]
        self.reached_end += 1
        return self.last(x)


def test_reads_what_a_layer_returns_and_stops_there():
    model, x = Model(), torch.randn(4, 3)
    assert torch.equal(activations_at(model, "first", x, scale=2.0), model.first(2 * x).detach())
    assert torch.equal(activations_at(model, "pair", x), model.first(x).detach() + 1)
    assert model.reached_end == 0
    assert not activations_at(model, "first", x).requires_grad
    assert not model.first._forward_hooks


def test_reads_several_layers_in_one_pass_and_stops_after_the_last():
    model, x = Model(), torch.randn(4, 3)
    found = activations_of(model, ["pair", "first"], x)
    assert list(found) == ["first", "pair"]  # in the order in which they are reached
    assert torch.equal(found["first"], activations_at(model, "first", x))
    assert torch.equal(found["pair"], activations_at(model, "pair", x))
    assert model.reached_end == 0
    activations_of(model, ["first", "last"], x)
    assert model.reached_end == 1
    with pytest.raises(ValueError, match="'unused' does not"):
        activations_of(model, ["first", "unused"], x)
    assert not model.first._forward_hooks


def test_replaces_what_a_layer_returns_while_the_block_lasts():
    model, x = Model(), torch.randn(4, 3)
    clean = model(x)
    for layer in ("first", "pair"):
        with replaced(model, layer, torch.zeros_like):
            inside = model(x)
        offset = 1.0 if layer == "first" else 0.0
        torch.testing.assert_close(inside, model.last(torch.full((4, 3), offset)))
    assert torch.equal(model(x), clean)
    with pytest.raises(ZeroDivisionError), replaced(model, "first", torch.zeros_like):
        raise ZeroDivisionError
    assert torch.equal(model(x), clean)


def test_an_unknown_layer_lists_those_that_there_are():
    with pytest.raises(ValueError, match=r"layer must be one of the model's \['first', 'pair', .*\], but is 'third'"):
        find_layer(Model(), "third")
    with pytest.raises(ValueError, match="but is ''"):
        find_layer(Model(), "")


def test_layers_that_give_no_activations_are_refused():
    with pytest.raises(ValueError, match="layer must take part in the forward pass, but 'unused' does not"):
        activations_at(Model(), "unused", torch.randn(4, 3))

    class Wrong(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = Words()

        def forward(self, x):
            return self.words(x)

    class Words(nn.Module):
        def forward(self, x):
            return "words"

    with pytest.raises(ValueError, match="layer must return a tensor of activations, but returns a str"):
        activations_at(Wrong(), "words", torch.randn(4, 3))
