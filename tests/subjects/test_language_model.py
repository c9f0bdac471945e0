"""The language model: its loss, its checkpoints, and what it refuses."""

import math

import pytest
import torch

from sae_lightning import load_module, load_sae
from sae_lightning.data.formal_language.grammar import BEGIN, END
from sae_lightning.data.formal_language.sentences import SentenceDataset
from sae_lightning.subjects import LanguageModel
from tests.helpers.language import TEXT, TINY, sentence_data, sentences
from tests.helpers.trainers import quiet_trainer


def test_the_loss_is_the_mean_over_words_and_ends():
    torch.manual_seed(0)
    model = LanguageModel(TEXT, **TINY)
    drawn = sentences(10)
    batch = SentenceDataset(drawn, 21)[torch.arange(10)]
    total, n = 0.0, 0
    for tokens in drawn.tokens.split(drawn.lengths().tolist()):
        log_probabilities = model(torch.cat([torch.tensor([BEGIN]), tokens])[None])[0].log_softmax(-1)
        for i, target in enumerate([*tokens.tolist(), END]):
            total -= log_probabilities[i, target].item()
            n += 1
    loss, counted = model._loss(batch)
    assert counted == n
    assert loss.item() == pytest.approx(total / n, rel=1e-5)


def test_training_lowers_the_loss_and_counts_tokens():
    torch.manual_seed(0)
    model, source = LanguageModel(TEXT, **TINY), sentence_data(n_train=12_800)
    run = quiet_trainer(max_epochs=1, gradient_clip_val=1.0)
    before = run.validate(model, source, verbose=False)[0]["val/loss"]
    assert before == pytest.approx(math.log(63), abs=0.2)
    run.fit(model, source)
    assert run.validate(model, source, verbose=False)[0]["val/loss"] < before - 0.3
    assert 12_800 * 7 < model.samples_seen < 12_800 * 10


def test_a_checkpoint_is_loaded_back(tmp_path):
    model, source = LanguageModel(TEXT, **TINY), sentence_data()
    run = quiet_trainer(max_epochs=1)
    run.fit(model, source)
    run.save_checkpoint(tmp_path / "lm.ckpt")
    loaded = load_module(tmp_path / "lm.ckpt")
    assert isinstance(loaded, LanguageModel)
    assert loaded.samples_seen == model.samples_seen > 0
    tokens = torch.tensor([[BEGIN, 5, 6]])
    assert torch.equal(loaded(tokens), model.eval()(tokens))
    with pytest.raises(ValueError, match="must be one of an SAE, but is one of a LanguageModel"):
        load_sae(tmp_path / "lm.ckpt")


@pytest.mark.parametrize(
    ("model", "source", "message"),
    [
        ({"n_positions": 20}, {}, "n_positions must be above data.max_length, .* they are 20 and 20"),
        ({"grammar_text": "S -> 'a' [1.0]"}, {}, "data.grammar must be the grammar that the model was made for"),
    ],
)
def test_data_that_do_not_fit_are_refused(model, source, message):
    module = LanguageModel(**{"grammar_text": TEXT, **TINY, **model})
    with pytest.raises(ValueError, match=message):
        quiet_trainer(max_epochs=1).fit(module, sentence_data(**source))


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="width must be a multiple of n_heads = 3, but is 8"):
        LanguageModel(TEXT, **{**TINY, "n_heads": 3})


def test_gradients_are_clipped_under_mixed_precision():
    model = LanguageModel(TEXT, **TINY)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    quiet_trainer(max_epochs=1, precision="bf16-mixed", gradient_clip_val=1.0, max_steps=2).fit(
        model, datamodule=sentence_data()
    )
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
