"""Which activations of a language model are read, held against the model's own hidden states."""

import json

import pytest
import torch

from sae_lightning.data.hosts import TextHost
from sae_lightning.data.sources import TextExample
from tests.data.hosts import tiny

transformers = pytest.importorskip("transformers")

SENTENCES = [["The", "cat", "sat", "."], ["unbelievable", ",", "said", "dogs"], ["barked"]]


def labelled(words, concepts=None):
    spans, at = [], 0
    for word in words:
        spans.append((at, at + len(word)))
        at += len(word) + 1
    return TextExample("d", " ".join(words), tuple(spans), tuple(concepts or range(len(words))))


EXAMPLES = [labelled(words) for words in SENTENCES]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return tiny.neox(tmp_path_factory.mktemp("neox"))


def hidden_states(folder, words, layer):
    """Hidden states behind a layer, and the word of each token, by transformers alone."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    found = tokenizer([words], is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        states = model(**found, output_hidden_states=True).hidden_states[layer + 1][0]
    return states, found.word_ids(0)


def read(host, examples, layers=("encoder.layer.1",)):
    return host.read(host.pieces(examples), list(layers), torch.float32)


@pytest.mark.parametrize("piece", ["first", "last"])
def test_a_word_is_read_at_its_first_or_last_token(folder, piece):
    found = read(TextHost(folder, piece=piece), EXAMPLES)
    expected = []
    for words in SENTENCES:
        states, ids = hidden_states(folder, words, 1)
        for word in range(len(words)):
            places = [i for i, owner in enumerate(ids) if owner == word]
            expected.append(states[places[0 if piece == "first" else -1]])
    torch.testing.assert_close(found.activations["encoder.layer.1"], torch.stack(expected), rtol=1e-5, atol=1e-6)
    assert found.concepts.tolist() == [*range(4), *range(4), 0]
    assert found.examples.tolist() == [0] * 4 + [1] * 4 + [2]
    texts = [EXAMPLES[i].text[a:b] for i, a, b in zip(found.examples, found.starts, found.ends, strict=True)]
    assert texts == [word for words in SENTENCES for word in words]


def test_several_layers_are_read_in_one_pass_with_the_same_labels(folder):
    host = TextHost(folder)
    both = read(host, EXAMPLES, ["encoder.layer.0", "encoder.layer.2"])
    for layer in both.activations:
        torch.testing.assert_close(both.activations[layer], read(host, EXAMPLES, [layer]).activations[layer])


def test_tokens_of_a_text_with_and_without_special_ones(folder):
    words = SENTENCES[1]
    states, ids = hidden_states(folder, words, 1)
    every = read(TextHost(folder, tokens="all"), [EXAMPLES[1]])
    torch.testing.assert_close(every.activations["encoder.layer.1"], states)
    assert every.concepts.tolist() == [-1 if owner is None else owner for owner in ids]
    text = read(TextHost(folder, tokens="text"), [EXAMPLES[1]])
    content = [i for i, owner in enumerate(ids) if owner is not None]
    torch.testing.assert_close(text.activations["encoder.layer.1"], states[content])
    assert text.concepts.tolist() == [ids[i] for i in content]


def test_the_first_token_and_the_mean_stand_for_the_whole_text(folder):
    example = EXAMPLES[0]._replace(concept=7)
    states, _ = hidden_states(folder, SENTENCES[0], 1)
    short = labelled(["barked"])._replace(concept=3)
    for tokens, expected in {"cls": states[0], "mean": states.mean(0)}.items():
        found = read(TextHost(folder, tokens=tokens), [example, short])
        torch.testing.assert_close(found.activations["encoder.layer.1"][0], expected, rtol=1e-5, atol=1e-6)
        assert found.concepts.tolist() == [7, 3]
        assert found.starts.tolist() == found.ends.tolist() == [-1, -1]


def test_unlabelled_words_stand_between_white_space(folder):
    found = read(TextHost(folder), [TextExample("d", "the cats\n barked.", concept=2)])
    assert [(int(a), int(b)) for a, b in zip(found.starts, found.ends, strict=True)] == [(0, 3), (4, 8), (10, 17)]
    assert found.concepts.tolist() == [2, 2, 2]


def test_long_texts_are_split_or_cut(folder):
    words = ["cat", "sat", "dog", "mat"] * 5
    split = read(TextHost(folder, max_length=8), [labelled(words)])
    assert split.concepts.tolist() == list(range(20))
    first, _ = hidden_states(folder, words[6:12], 1)
    torch.testing.assert_close(split.activations["encoder.layer.1"][6:12], first[1:7])
    cut = read(TextHost(folder, max_length=8, long_texts="cut"), [labelled(words)])
    assert cut.concepts.tolist() == list(range(6))
    assert TextHost(folder).max_length == 32


def test_filling_changes_nothing(folder):
    host = TextHost(folder)
    pieces = host.pieces(EXAMPLES)
    together = host.read(pieces, ["encoder.layer.3"], torch.float32).activations["encoder.layer.3"]
    alone = [host.read([piece], ["encoder.layer.3"], torch.float32).activations["encoder.layer.3"] for piece in pieces]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_a_causal_model_with_byte_level_tokens(causal):
    host = TextHost(causal, causal=True)
    example = labelled(["the", "cat", "sat", "on", "the", "mat", "."])
    found = read(host, [example], ["gpt_neox.layers.1"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(causal)
    model = transformers.AutoModelForCausalLM.from_pretrained(causal).eval()
    ids = tokenizer(example.text, return_tensors="pt", return_offsets_mapping=True)
    with torch.no_grad():
        states = model(ids["input_ids"], output_hidden_states=True).hidden_states[2][0]
    ends = ids["offset_mapping"][0][:, 1].tolist()
    places = [ends.index(end) for _, end in example.spans]
    torch.testing.assert_close(found.activations["gpt_neox.layers.1"], states[places])
    assert found.concepts.tolist() == list(range(7))


def test_the_model_may_run_in_another_type(folder):
    host = TextHost(folder, dtype="bfloat16")
    assert next(host.model.parameters()).dtype == torch.bfloat16
    found = read(host, EXAMPLES).activations["encoder.layer.1"]
    exact = read(TextHost(folder), EXAMPLES).activations["encoder.layer.1"]
    assert found.dtype == torch.float32
    assert 0 < (found - exact).norm() / exact.norm() < 0.05


def test_empty_texts_give_nothing(folder):
    found = TextHost(folder).pieces([TextExample("d", ""), EXAMPLES[2]])
    assert sum(len(piece.rows.concepts) for piece in found) == 1


def test_a_folder_without_weights_is_refused(folder, tmp_path):
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tmp_path.__class__(folder) / name).read_bytes())
    with pytest.raises(ValueError, match=r"cannot be loaded as a folder with AutoModel: .*model\.safetensors"):
        TextHost(str(tmp_path))


def test_weights_of_another_model_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    tiny.bert(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: value for name, value in state.items() if "embeddings" in name},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match="must hold the weights of a BertModel, but lacks"):
        TextHost(str(tmp_path))


def test_a_folder_that_does_not_exist_and_a_package_that_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="cannot be loaded as a model on the hub"):
        TextHost(str(tmp_path / "nothing"))
    with pytest.raises(ValueError, match="name must be that of a folder in an installed package"):
        TextHost("package:no_such_package/model")
    with pytest.raises(ValueError, match="name must be that of a folder in an installed package"):
        TextHost("package:../x")


def test_code_that_comes_with_a_model_does_not_run_unasked(folder, tmp_path):
    tiny.bert(tmp_path / "model")
    witness = tmp_path / "witness"
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text())
    config.update(model_type="evil", auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"})
    path.write_text(json.dumps(config))
    (tmp_path / "model" / "evil.py").write_text(
        f"open({str(witness)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\n"
    )
    with pytest.raises(ValueError, match="trust_remote_code"):
        TextHost(str(tmp_path / "model"))
    assert not witness.exists()


def test_wrong_arguments(folder):
    with pytest.raises(ValueError, match=r"max_length must be between 1 and 32 .* but is 33"):
        TextHost(folder, max_length=33)
    with pytest.raises(
        ValueError, match=r"layer must be one of the model's \['embeddings'.*'encoder.layer.0'.*but is 'block'"
    ):
        TextHost(folder).check(["block"])
    with pytest.raises(ValueError, match="layers must name at least one layer"):
        TextHost(folder).check([])


def test_labels_that_do_not_align_are_refused_or_counted(folder):
    host = TextHost(folder)
    wrong = TextExample("d", "the cat sat", ((0, 3), (20, 23), (30, 33), (40, 43)), (0, 1, 2, 3))
    with pytest.raises(ValueError, match="only 1 of 4 labelled words have a token, from 'd' on"):
        host.pieces([wrong])
    host = TextHost(folder)
    host.pieces([TextExample("d", "the cat sat", ((0, 3), (4, 7), (20, 23)), (0, 1, 2))])
    assert host.unaligned == 1
