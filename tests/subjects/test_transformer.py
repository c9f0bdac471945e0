"""The language model's transformer: sizes, masks, and generation."""

import pytest
import torch

from sae_lightning.subjects.transformer import Transformer


def model(**changes):
    torch.manual_seed(0)
    sizes = {"n_tokens": 11, "width": 16, "n_layers": 2, "n_heads": 2, "n_positions": 12}
    made = Transformer(**{**sizes, **changes})
    for parameter in made.parameters():  # far from the small initial weights, so that everything matters
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.3)
    return made.eval()


def tokens(*shape, seed=1):
    return torch.randint(3, 11, shape, generator=torch.Generator().manual_seed(seed))


def test_the_papers_sizes_give_the_papers_number_of_parameters():
    made = Transformer(n_tokens=69, width=128, n_layers=2, n_heads=2, n_positions=256)
    assert sum(p.numel() for p in made.parameters()) == 435_456
    assert not any(name.endswith("bias") for name, _ in made.named_parameters())


def test_a_block_is_what_torchs_own_layer_computes():
    made = model(n_layers=1)
    block = made.blocks[0]
    theirs = torch.nn.TransformerEncoderLayer(
        16, 2, 64, dropout=0, activation="gelu", batch_first=True, norm_first=True, bias=False
    ).eval()
    theirs.self_attn.in_proj_weight.data = block.attention.to_heads.weight.data
    theirs.self_attn.out_proj.weight.data = block.attention.from_heads.weight.data
    theirs.linear1.weight.data, theirs.linear2.weight.data = block.mlp[0].weight.data, block.mlp[2].weight.data
    x = torch.randn(3, 7, 16)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(7)
    torch.testing.assert_close(block(x, None), theirs(x, mask, is_causal=True), atol=1e-5, rtol=1e-5)


def test_a_token_sees_no_later_one():
    made, x = model(), tokens(2, 8)
    changed = x.clone()
    changed[:, 5] = 3 + (changed[:, 5] - 2) % 8
    before, after = made(x), made(changed)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5], after[:, 5])


def test_sentences_in_one_row_do_not_see_each_other():
    made = model()
    first, second = tokens(1, 4), tokens(1, 6, seed=2)
    row = torch.cat([first, second], 1)
    positions = torch.cat([torch.arange(4), torch.arange(6)])[None]
    segments = torch.tensor([[0] * 4 + [1] * 6])
    found = made(row, positions, segments)
    torch.testing.assert_close(found[:, :4], made(first), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, 4:], made(second), atol=1e-5, rtol=1e-5)


def test_filling_gives_no_nan():
    segments = torch.tensor([[0, 0, -1, -1]])
    assert model()(tokens(1, 4), torch.zeros(1, 4, dtype=torch.int64), segments).isfinite().all()


def test_generated_sequences_follow_the_models_distribution():
    made = model(n_tokens=5, n_positions=3)
    drawn = made.generate(20_000, 1, 2, torch.Generator().manual_seed(0), max_tokens=2)
    first = made(torch.tensor([[1]]))[0, -1].softmax(-1)
    counts = torch.bincount(drawn[:, 0], minlength=5) / 20_000
    torch.testing.assert_close(counts, first, atol=0.015, rtol=0)
    second = made(torch.tensor([[1, 3]]))[0, -1].softmax(-1)
    followers = drawn[drawn[:, 0] == 3, 1]
    torch.testing.assert_close(torch.bincount(followers, minlength=5) / len(followers), second, atol=0.03, rtol=0)


def test_generation_stops_at_the_end_and_fills_with_it():
    drawn = model(n_tokens=5).generate(200, 1, 2, torch.Generator().manual_seed(0))
    assert drawn.shape[1] <= 12
    ended = (drawn == 2).int().cummax(1).values.bool()
    assert (drawn[ended] == 2).all()
    assert torch.equal(drawn, model(n_tokens=5).generate(200, 1, 2, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layers": 0}, "n_layers must be at least 1, but is 0"),
        ({"n_heads": 3}, "width must be a multiple of n_heads = 3, but is 16"),
        ({"n_positions": 0}, "n_positions must be at least 1, but is 0"),
    ],
)
def test_bad_sizes(changes, message):
    with pytest.raises(ValueError, match=message):
        model(**changes)


def test_sequences_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="at most n_positions = 12 tokens, but one has 13"):
        model()(tokens(1, 13))
