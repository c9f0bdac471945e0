"""Which activations of a language model are read, held against the model's own hidden states."""

import json
import random

import pytest
import torch

from sae_lightning.data.activations.hosts import TextHost
from sae_lightning.data.sources import TextExample
from tests.helpers import hosts

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
    return hosts.bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture(scope="module")
def causal(tmp_path_factory):
    return hosts.neox(tmp_path_factory.mktemp("neox"))


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

    hosts.bert(tmp_path)
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
    hosts.bert(tmp_path / "model")
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
    with pytest.raises(ValueError, match="only 1 of 4 labeled words have a token, from 'd' on"):
        host.pieces([wrong])
    host = TextHost(folder)
    host.pieces([TextExample("d", "the cat sat", ((0, 3), (4, 7), (20, 23)), (0, 1, 2))])
    assert host.unaligned == 1


# -- words of characters that several tokens share ------------------------------------------------------------------

FOREIGN = ["日本", "café", "の", "e\u0301", "👩\u200d👩\u200d👧", "क्षि", "\u200bcat", "ﬁ", "Ġ", "▁", "cat", "x"]
BREAKS = [" ", " ", "  ", "\n", "", "", "\u3000"]
TAUGHT = ["日本日本の本 の日", "caféの caféx", "👩👧👩 👧", "the catx", "のxの", "xकxक"]


def foreign(seed, n_words=12):
    """A text of foreign words, some with nothing between, and where each is; some are two with a break."""
    rng = random.Random(seed)
    text, spans = rng.choice(["", " "]), []
    for word in rng.choices(FOREIGN, k=n_words):
        if rng.random() < 0.2:
            word += rng.choice(BREAKS) + "x"  # noqa: PLW2901
        spans.append((len(text), len(text) + len(word)))
        text += word + rng.choice(BREAKS)
    return TextExample("d", text, tuple(spans), tuple(range(n_words)))


def bytes_of(tokens):
    """The bytes that each token of a byte-level vocabulary stands for: those that print badly have other letters."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    strange = [byte for byte in range(256) if byte not in plain]
    alphabet = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(strange)}
    return [bytes(alphabet[letter] for letter in token) for token in tokens]


def tokens_by_bytes(tokenizer, example):
    """All tokens that hold a byte of each word, counted along the bytes of the text."""
    tokens = bytes_of(tokenizer.convert_ids_to_tokens(tokenizer(example.text)["input_ids"]))
    at = len(example.text.encode()) - len(b"".join(tokens))  # -1 where a space was put in front
    assert b"".join(tokens)[-at:] == example.text.encode()
    places = []
    for token in tokens:
        places.append(range(at, at + len(token)))
        at += len(token)
    found = []
    for begin, end in example.spans:
        word = set(range(len(example.text[:begin].encode()), len(example.text[:end].encode())))
        found.append([i for i, place in enumerate(places) if word & set(place)])
    return found


def places_in_text(pieces):
    """Place of each row's token among all tokens of a text, and its concept."""
    begins = [sum(piece.length for piece in pieces[:i]) for i in range(len(pieces))]
    rows = [(begin, piece.rows) for begin, piece in zip(begins, pieces, strict=True)]
    return [
        (begin + int(place), int(concept))
        for begin, row in rows
        for place, concept in zip(row.places, row.concepts, strict=True)
    ]


@pytest.fixture(scope="module", params=[(a, b) for a in (False, True) for b in (False, True)], ids=str)
def foreign_folder(request, tmp_path_factory):
    prefix, trim = request.param
    tokenizer = hosts.byte_level(TAUGHT, 290, add_prefix_space=prefix, trim_offsets=trim)
    return hosts.neox(tmp_path_factory.mktemp("foreign"), tokenizer)


@pytest.mark.parametrize("piece", ["first", "last"])
def test_a_word_is_read_at_the_token_with_its_first_or_last_byte(foreign_folder, piece):
    host = TextHost(foreign_folder, piece=piece)
    n_shared = 0
    for seed in range(100):
        example = foreign(seed)
        tokens = tokens_by_bytes(host.tokenizer, example)
        n_shared += len({i for word in tokens for i in word}) < sum(len(word) for word in tokens)
        wanted = [(word[0 if piece == "first" else -1], i) for i, word in enumerate(tokens)]
        assert places_in_text(host.pieces([example])) == wanted, example.text
    assert n_shared > 5  # texts with a token that holds parts of two words
    assert host.unaligned == 0


@pytest.mark.parametrize("piece", ["first", "last"])
def test_a_word_whose_character_is_torn_between_pieces_is_read_once(foreign_folder, piece):
    most = 7
    split = TextHost(foreign_folder, piece=piece, max_length=most)
    cut = TextHost(foreign_folder, piece=piece, max_length=most, long_texts="cut")
    for seed in range(50):
        example = foreign(seed)
        tokens = tokens_by_bytes(split.tokenizer, example)
        wanted = [(word[0 if piece == "first" else -1], i) for i, word in enumerate(tokens)]
        assert places_in_text(split.pieces([example])) == wanted, example.text
        pieces = cut.pieces([example])
        assert [piece.length for piece in pieces] == [most]
        assert places_in_text(pieces) == [(place, i) for place, i in wanted if place < most], example.text


def test_every_token_has_the_concept_of_the_last_word_of_which_it_holds_a_byte(foreign_folder):
    host = TextHost(foreign_folder, tokens="text")
    for seed in range(50):
        example = foreign(seed)
        tokens = tokens_by_bytes(host.tokenizer, example)
        n = len(host.tokenizer(example.text)["input_ids"])
        wanted = [max((word for word, held in enumerate(tokens) if i in held), default=-1) for i in range(n)]
        assert places_in_text(host.pieces([example])) == list(enumerate(wanted)), example.text


@pytest.mark.parametrize("piece", ["first", "last"])
def test_bytes_of_unknown_characters_and_marks_of_spaces(piece, tmp_path):
    """Against the words that transformers is given one by one; the mark in front of one is not yet the word."""
    host = TextHost(hosts.neox(tmp_path, hosts.byte_fallback()), piece=piece)
    words = ["日本", "cat", "café", "👩\u200d👧", "mat", "e\u0301"]
    found = host.tokenizer([words], is_split_into_words=True)
    tokens, owners = found.tokens(0), found.word_ids(0)
    held = [[i for i, own in enumerate(owners) if own == word and tokens[i] != "▁"] for word in range(len(words))]
    wanted = [(places[0 if piece == "first" else -1], word) for word, places in enumerate(held)]
    named = [tokens[place] for place, _ in wanted]
    assert named[:2] == (["<0xE6>", "▁cat"] if piece == "first" else ["<0xAC>", "▁cat"])
    assert places_in_text(host.pieces([labelled(words)])) == wanted


def test_a_space_in_front_is_not_the_word_where_a_piece_ends_behind_it(tmp_path):
    """Each word has a mark of its own here."""
    tokenizers = pytest.importorskip("tokenizers")
    made = hosts.byte_fallback()
    split = [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Metaspace()]
    made.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(split)
    made.post_processor = tokenizers.processors.TemplateProcessing("<unk> $A <unk>", special_tokens=[("<unk>", 0)])
    host = TextHost(hosts.neox(tmp_path, made), piece="first", max_length=4)
    pieces = host.pieces([labelled(["cat", "日"])])
    tokens = [host.tokenizer.convert_ids_to_tokens(piece.inputs["input_ids"])[1:-1] for piece in pieces]
    assert tokens == [["▁cat", "▁"], ["<0xE6>", "<0x97>"], ["<0xA5>"]]
    assert [piece.rows.places.tolist() for piece in pieces] == [[1], [1], []]


def test_a_character_that_is_rewritten_as_several_has_a_first_and_a_last_token(tmp_path):
    """NFKC makes two letters of 'ﬁ', which share its place."""
    tokenizers = pytest.importorskip("tokenizers")
    letters = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0, "f": 1, "##i": 2, "cat": 3}))
    letters.normalizer = tokenizers.normalizers.NFKC()
    letters.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    path = hosts.neox(tmp_path, letters)
    for piece, token in (("first", 1), ("last", 2)):
        (found,) = TextHost(path, piece=piece).pieces([labelled(["cat", "ﬁ", "cat"])])
        assert found.inputs["input_ids"][found.rows.places].tolist() == [3, token, 3]


def test_words_that_begin_or_end_where_no_token_does_are_read_at_the_tokens_that_they_have(folder):
    """BERT drops characters without width, which no token holds."""
    text = "\u200bcat \u200bsat\u200b mat"
    spans = ((0, 4), (5, 6), (6, 10), (11, 14))
    for piece in ("first", "last"):
        host = TextHost(folder, piece=piece)
        (found,) = host.pieces([TextExample("d", text, spans, (0, 1, 2, 3))])
        tokens = host.tokenizer.convert_ids_to_tokens(found.inputs["input_ids"])
        assert [tokens[place] for place in found.rows.places] == ["cat", "sat", "mat"]
        assert found.rows.concepts.tolist() == [0, 2, 3]
        places = zip(found.rows.starts.tolist(), found.rows.ends.tolist(), strict=True)
        assert list(places) == [(0, 4), (6, 10), (11, 14)]
        assert host.unaligned == 1
        (nothing,) = host.pieces([TextExample("d", "\u200b")])
        assert nothing.rows.places.tolist() == []


def test_long_texts_lose_their_end_whatever_side_the_tokenizer_would_cut(folder, tmp_path):
    hosts.bert(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "truncation_side": "left"}))
    example = labelled(["cat", "sat", "dog", "mat"] * 5)
    for long_texts in ("split", "cut"):
        one, other = (TextHost(where, max_length=8, long_texts=long_texts) for where in (folder, str(tmp_path)))
        assert other.tokenizer.init_kwargs["truncation_side"] == "left"
        assert read(one, [example]).concepts.tolist() == read(other, [example]).concepts.tolist()
