"""Activations of a language model with what its grammar knows of each word."""

import re

import pytest
import torch

from sae_lightning.data import ActivationBatch, FormalLanguageDataModule, Grammar, SentenceDataModule
from sae_lightning.data.formal_language.activations import Concepts, read_language_model
from sae_lightning.data.formal_language.derivations import SentenceSampler
from sae_lightning.data.formal_language.grammar import BEGIN, N_SPECIAL
from sae_lightning.data.formal_language.inside import Inside
from sae_lightning.modules import SpaDE
from sae_lightning.subjects import LanguageModel
from tests.helpers.language import FOLDER, SHIPPED
from tests.helpers.runs import ROOT

TINY = {"width": 8, "n_layers": 2, "n_heads": 2, "n_positions": 32}
PARTS = {"noun": ["N", "Pro"], "verb": ["V"], "adverb": ["Adv"], "adjective": ["Adj"], "conjunction": ["Conj"]}


def checkpoint(folder, name, text=None):
    """An untrained language model's checkpoint: activations are as good as any."""
    torch.manual_seed(0)
    module = LanguageModel((FOLDER / f"{name}.pcfg").read_text() if text is None else text, **TINY)
    saved = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(saved)
    path = folder / f"{name}.ckpt"
    torch.save(saved, path)
    return str(path)


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("lm"), "english")


def data(path, **changes):
    sizes = {"n_train": 64, "n_val": 50, "n_test": 40, "batch_size": 16, "eval_batch_size": 16, "seed": 1}
    return FormalLanguageDataModule(path, **{"max_length": 20, "n_fidelity": 5, **sizes, **changes})


def one_by_one(module, layer, sentences):
    """The layer's output for each sentence alone, without the begin."""
    found = []
    for tokens in sentences:
        outputs = {}
        hook = dict(module.model.named_modules())[layer].register_forward_hook(
            lambda m, i, o: outputs.update(value=o)  # noqa: B023
        )
        module.model(torch.cat([torch.tensor([BEGIN]), tokens])[None])
        hook.remove()
        found.append(outputs["value"][0, 1:])
    return torch.cat(found)


@pytest.mark.parametrize("layer", ["embed", "blocks.0", "blocks.1", "blocks.0.mlp", "blocks.1.attention"])
def test_activations_are_those_of_each_sentence_alone(english, layer):
    module = data(english, layer=layer)
    words = module.sampler()
    sentences = words.sampler.draw(12, torch.Generator().manual_seed(3))
    found = words.of(sentences)
    alone = one_by_one(module, layer, sentences.tokens.split(sentences.lengths().tolist()))
    torch.testing.assert_close(found.activations, alone, atol=1e-5, rtol=1e-5)
    assert module.d_in == 8
    assert not found.activations.requires_grad


def test_hidden_perceptrons_have_their_own_width(english):
    assert data(english, layer="blocks.0.mlp.0").d_in == 32


def test_parts_of_speech_are_the_symbols_that_yield_the_words(english):
    module = data(english, layer="embed", concepts=PARTS)
    assert module.concept_names == list(PARTS)
    words = module.sampler()
    sentences = words.sampler.draw(200, torch.Generator().manual_seed(0))
    labels = words.of(sentences).concepts
    for word, concept in (("she", 0), ("river", 0), ("sees", 1), ("often", 2), ("old", 3), ("because", 4)):
        token = N_SPECIAL + module.grammar.words.index(word)
        assert (labels[sentences.tokens == token] == concept).all(), word
        assert (sentences.tokens == token).any(), word


def test_without_names_each_symbol_that_yields_words_is_a_concept(english):
    assert data(english).concept_names == ["N", "V", "Adj", "Pro", "Adv", "Conj"]


def test_words_of_no_concept_are_unlabelled(english):
    module = data(english, concepts={"verb": ["V"]})
    assert set(module.split("val").concepts.tolist()) == {-1, 0}


def test_depths_and_positions(tmp_path):
    path = checkpoint(tmp_path, "dyck")
    module = data(path, concepts="depth", nesting=["Round", "Square"], n_levels=3)
    assert module.concept_names == ["depth 1", "depth 2", "depth 3+"]
    assert set(module.split("val").concepts.tolist()) == {0, 1, 2}
    words = module.sampler()
    sentences = words.sampler.draw(50, torch.Generator().manual_seed(0))
    assert torch.equal(words.of(sentences).concepts, (sentences.depths - 1).clamp(max=2))
    module = data(path, concepts="position", n_levels=4)
    assert module.concept_names == ["position 0", "position 1", "position 2", "position 3+"]
    words = module.sampler()
    assert torch.equal(words.of(sentences).concepts, sentences.positions().clamp(max=3))


def test_streams_are_endless_and_batches_full(english):
    loader = data(english).train_dataloader()
    first, second = list(loader), list(loader)
    assert [len(b.activations) for b in first] == [16] * 4
    assert not torch.equal(first[0].activations, second[0].activations)
    again = list(data(english).train_dataloader())
    assert all(torch.equal(a.activations, b.activations) for a, b in zip(first, again, strict=True))
    other = list(data(english, seed=2).train_dataloader())
    assert not torch.equal(first[0].activations, other[0].activations)


def test_in_memory_every_epoch_shows_the_same_activations_in_another_order(english):
    module = data(english, in_memory=64)
    loader = module.train_dataloader()
    epochs = [torch.cat([batch.activations for batch in loader]) for _ in range(2)]
    assert epochs[0].shape == (64, 8)
    assert not torch.equal(*epochs)
    assert torch.equal(*(epoch.sort(0).values for epoch in epochs))


def test_held_out_splits_have_their_sizes_and_differ(english):
    module = data(english)
    val, test = module.split("val"), module.split("test")
    assert (len(val), len(test)) == (50, 40)
    assert isinstance(val[torch.arange(3)], ActivationBatch)
    assert not torch.equal(val.activations[:40], test.activations)


def test_the_host_predicts_what_the_model_predicts_and_takes_reconstructions(english):
    module = data(english, layer="blocks.0")
    host = module.host()
    assert len(host.batches) == 1
    batch = host.batches[0]
    tokens, positions, segments = batch.inputs
    clean = module.model(tokens, positions, segments)[batch.targets >= 0]
    torch.testing.assert_close(host.logits(batch), clean)
    torch.testing.assert_close(host.logits(batch, lambda x: x), clean)
    zeroed = host.logits(batch, torch.zeros_like)
    assert not torch.allclose(zeroed, clean)
    # the first word of a sentence is predicted from its begin, which is not replaced
    firsts = (positions == 0)[batch.targets >= 0]
    torch.testing.assert_close(zeroed[firsts], clean[firsts], atol=1e-5, rtol=1e-5)
    assert batch.explained.sum() == sum(int((b.targets >= 0).sum()) for b in host.batches) - 5
    torch.testing.assert_close(host.mean, module.split("test").activations.mean(0))


def test_the_models_grammar_and_weights_are_read_back(english):
    model, grammar = read_language_model(english)
    assert grammar.same_as(Grammar.from_file(FOLDER / "english.pcfg"))
    assert not any(p.requires_grad for p in model.parameters())
    saved = torch.load(english, weights_only=True)["state_dict"]
    assert torch.equal(model.embed.tokens.weight, saved["transformer.embed.tokens.weight"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer": "blocks.7"}, r"layer must be one of the model's \['embed', .*'blocks.1'.*\], but is 'blocks.7'"),
        ({"max_length": 32}, "max_length must be below the model's n_positions = 32, but is 32"),
        (
            {"grammar": str(FOLDER / "dyck.pcfg")},
            r"checkpoint must be of the grammar '.*dyck.pcfg', but .* of another one",
        ),
        ({"concepts": {"x": ["Verb"]}}, r"concepts must name nonterminals of the grammar, .* but name 'Verb'"),
        ({"concepts": {"x": ["V"], "y": ["V"]}}, "each nonterminal must belong to one concept, but 'V' belongs to two"),
        ({"concepts": "depth"}, "nesting must name the nonterminals that count for concepts = 'depth', but is empty"),
        ({"concepts": "depth", "nesting": ["B"]}, r"nonterminals must be among the grammar's .*, but are \['B'\]"),
        ({"n_levels": 0}, "n_levels must be at least 1, but is 0"),
        ({"in_memory": 0}, "in_memory must be at least 1, but is 0"),
        ({"in_memory": 8}, "at least one batch of batch_size .* = 16 samples, but holds 8"),
        ({"n_fidelity": 0}, "n_fidelity must be at least 1, but is 0"),
    ],
)
def test_bad_arguments(english, changes, message):
    with pytest.raises(ValueError, match=message):
        data(english, **changes).train_dataloader()


def test_the_checkpoints_own_grammar_may_be_named(english):
    assert data(english, grammar=str(FOLDER / "english.pcfg")).d_in == 8


def test_a_file_that_is_no_language_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"checkpoint must be a file, .*gpt.yaml"):
        data(str(tmp_path / "none.ckpt"))
    sae = SpaDE(2, 4)
    saved = {"state_dict": sae.state_dict()}
    sae.on_save_checkpoint(saved)
    torch.save(saved, tmp_path / "sae.ckpt")
    with pytest.raises(ValueError, match=r"sae.ckpt' must be one of a LanguageModel, but is not"):
        data(str(tmp_path / "sae.ckpt"))
    (tmp_path / "damaged.ckpt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"damaged.ckpt' must be one of a LanguageModel, but is not"):
        data(str(tmp_path / "damaged.ckpt"))


def test_concepts_without_labels_are_refused_by_their_kind():
    with pytest.raises(ValueError, match="concepts must be a mapping, 'parent', 'depth' or 'position', but is 'shape'"):
        Concepts(Grammar.from_file(FOLDER / "english.pcfg"), "shape", [], 3)


# -- which sentences splits have in common ---------------------------------------------------------------------------


def repeated(grammar, sentences, max_length, n_drawn):
    """Probability of each sentence to occur among `n_drawn` that are drawn independently, by the inside algorithm."""
    inside = Inside(grammar)
    fitting = inside.length_probabilities(max_length).sum()
    short = [len(sentence) <= 24 for sentence in sentences]  # longer ones hardly come twice, and take long to sum
    found = torch.zeros(len(sentences), dtype=torch.float64)
    chosen = [torch.tensor(sentence) for sentence, is_short in zip(sentences, short, strict=True) if is_short]
    found[torch.tensor(short)] = inside.log_probabilities(chosen).exp() / fitting
    return 1 - (1 - found).pow(n_drawn)


def sentences_of(batches):
    """The sentences of batches of tokens, read off their rows."""
    found = []
    for batch in batches:
        for tokens, owners in zip(*(rows.tolist() for rows in batch), strict=True):
            words = {owner: [] for owner in owners if owner >= 0}
            for token, owner in zip(tokens, owners, strict=True):
                if owner >= 0:
                    words[owner].append(token)
            found += [tuple(sentence[1:]) for sentence in words.values()]  # without its begin
    return found


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_sentences_of_splits_and_of_fidelity_are_independent_draws(path, tmp_path, monkeypatch):
    """As many occur twice as probability says: neither none, as if splits were disjoint, nor more."""
    drawn, draw = [], SentenceSampler.draw

    def recorded(self, n, generator):
        found = draw(self, n, generator)
        drawn.extend(tuple(tokens.tolist()) for tokens in found.tokens.split(found.lengths().tolist()))
        return found

    sizes = {"max_length": 31, "seed": 1, "n_val": 4_000, "n_test": 4_000}
    module = data(checkpoint(tmp_path, path.stem), n_fidelity=500, batch_size=2048, **{**sizes, "n_train": 20_480})
    monkeypatch.setattr(SentenceSampler, "draw", recorded)
    splits = {}
    for name, make in (
        ("train", lambda: list(module.train_dataloader())),
        ("val", lambda: module.split("val")),
        ("test", lambda: module.split("test")),
    ):
        drawn.clear()
        make()
        splits[name] = list(drawn)
    monkeypatch.undo()
    fidelity = sentences_of((batch.inputs[0], batch.inputs[2]) for batch in module.host().batches)
    assert len(fidelity) == 500
    trained_on = SentenceDataModule(str(path), batch_size=500, **{**sizes, "n_train": 5_000})
    splits["language model's"] = sentences_of((b.tokens, b.segments) for b in trained_on.train_dataloader())
    assert len(splits["language model's"]) == 5_000
    for name, known in splits.items():
        wanted = repeated(module.grammar, fidelity, 31, len(known))
        spread = (wanted * (1 - wanted)).sum().sqrt() / len(fidelity)
        held = set(known)
        shared = sum(sentence in held for sentence in fidelity) / len(fidelity)
        assert abs(shared - wanted.mean()) < 4 * spread, (name, shared, wanted.mean())
        assert 0 < shared < 1


def test_the_readme_says_how_many_held_out_sentences_occur_in_training():
    table = re.search(r"of the sentences \|(.*)\|\n\| of their words \|(.*)\|", (ROOT / "README.md").read_text())
    told = [[float(share) / 100 for share in re.findall(r"(\d+) %", row)] for row in table.groups()]
    for column, name in enumerate(("english", "dyck", "expressions")):
        grammar = Grammar.from_file(FOLDER / f"{name}.pcfg")
        drawn = SentenceSampler(grammar, 63).draw(10_000, torch.Generator().manual_seed(0))
        lengths = drawn.lengths()
        sentences = [tokens.tolist() for tokens in drawn.tokens.split(lengths.tolist())]
        shares = repeated(grammar, sentences, 63, 128_000)
        assert shares.mean() == pytest.approx(told[0][column], abs=0.025), name
        assert (shares * lengths).sum() / lengths.sum() == pytest.approx(told[1][column], abs=0.025), name
