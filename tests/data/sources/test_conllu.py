import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_lightning.data.sources import ConlluFiles, UnreadableError
from sae_lightning.data.sources.conllu import UPOS

Save = Callable[..., str]


def row(number: Any, form: str, upos: str = "NOUN", misc: str = "_", xpos: str = "_", deprel: str = "dep") -> str:
    return "\t".join([str(number), form, form.lower(), upos, xpos, "_", "0", deprel, "_", misc])


def sentence(*rows: str) -> str:
    return "\n".join(rows) + "\n\n"


DOGS = sentence(
    "# sent_id = 1",
    "# text = Dogs  don't bark, do they?",
    row(1, "Dogs", "NOUN", xpos="NNS", deprel="nsubj"),
    row("2-3", "don't", "_"),
    row(2, "do", "AUX", xpos="VBP"),
    row(3, "n't", "PART", xpos="RB"),
    row(4, "bark", "VERB", "SpaceAfter=No", "VB", "root"),
    row(5, ",", "PUNCT"),
    row(6, "do", "AUX"),
    row("6.1", "bark", "VERB"),
    row(7, "they", "PRON", "Gloss=x|SpaceAfter=No"),
    row(8, "?", "PUNCT"),
)
ZUM = sentence(
    row(1, "Er", "PRON"),
    row(2, "geht", "VERB"),
    row("3-4", "zum", "_"),
    row(3, "zu", "ADP"),
    row(4, "dem", "DET"),
    row(5, "See", "NOUN", "SpaceAfter=No"),
    row(6, ".", "PUNCT"),
)


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write files; return their folder."""

    def write(text: str | bytes = "", name: str = "a.conllu", **others: str) -> str:
        for file, content in {name: text, **others}.items():
            path = tmp_path / "treebank" / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / "treebank")

    return write


def words(source: ConlluFiles, index: int) -> list[tuple[str, str | None]]:
    example = source[index]
    named = [source.concept_names[c] if c >= 0 else None for c in example.concepts]
    return [(example.text[a:b], name) for (a, b), name in zip(example.spans, named, strict=True)]


# -- reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_sentences(save: Save, end: str, start: bytes) -> None:
    source = ConlluFiles(save(start + (DOGS + "\n\n" + ZUM).replace("\n", end).encode()))
    assert source.concept_names == UPOS
    assert len(UPOS) == len(set(UPOS)) == 17
    assert len(source) == 2
    assert source[0].text == "Dogs  don't bark, do they?"
    assert words(source, 0) == [
        ("Dogs", "NOUN"),
        ("do", "AUX"),
        ("n't", "PART"),
        ("bark", "VERB"),
        (",", "PUNCT"),
        ("do", "AUX"),
        ("they", "PRON"),
        ("?", "PUNCT"),
    ]
    assert source[1].text == "Er geht zum See."
    assert words(source, 1) == [("Er", "PRON"), ("geht", "VERB"), ("zum", "ADP"), ("See", "NOUN"), (".", "PUNCT")]
    assert source[1] == source[-1] == source[1]
    for index in (2, -3):
        with pytest.raises(IndexError):
            source[index]


def test_a_last_sentence_without_a_line_behind(save: Save) -> None:
    source = ConlluFiles(save(DOGS + ZUM.rstrip("\n")))
    assert [source[i].text for i in range(2)] == ["Dogs  don't bark, do they?", "Er geht zum See."]


def test_a_word_with_a_space_in_it(save: Save) -> None:
    path = save(sentence("# text = 10 000\u00a0km", row(1, "10 000", "NUM"), row(2, "km", "NOUN")))
    assert words(ConlluFiles(path), 0) == [("10 000", "NUM"), ("km", "NOUN")]


def test_other_fields(save: Save) -> None:
    path = save(DOGS)
    xpos = ConlluFiles(path, {"verb": ["VB", "VBP"], "noun": ["NNS"]}, "xpos")
    assert xpos.concept_names == ["verb", "noun"]
    assert xpos[0].concepts == (1, 0, -1, 0, -1, -1, -1, -1)
    deprel = ConlluFiles(path, {"subject": ["nsubj"]}, "deprel")
    assert deprel[0].concepts == (0, -1, -1, -1, -1, -1, -1, -1)
    upos = ConlluFiles(path, {"function": ["AUX", "PRON"]})
    assert upos[0].concepts == (-1, 0, -1, -1, -1, 0, 0, -1)


def test_a_word_without_a_part_of_speech(save: Save) -> None:
    assert words(ConlluFiles(save(sentence(row(1, "Hm", "_")))), 0) == [("Hm", None)]


def test_documents(save: Save) -> None:
    one = sentence(row(1, "One"))
    path = save(
        one + "# newdoc id = first\n" + one + one + "# newdoc\n" + one + "# global.columns = ID\n\n" + one,
        "a.conllu",
        **{"b/c.conllu": one, "d.txt": "no treebank", ".hidden.conllu": "damaged"},
    )
    source = ConlluFiles(path)
    expected = ["a.conllu", "first", "first", "a.conllu:2", "a.conllu:2", "b/c.conllu"]
    assert [source[i].document for i in range(len(source))] == expected


def test_a_file_a_folder_and_a_pattern(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(DOGS, "b/x.conllu", **{"a/y.txt": ZUM, "[c].conllu": ZUM})

    def documents(path: str) -> list[str]:
        source = ConlluFiles(path)
        return [source[i].document for i in range(len(source))]

    assert documents(path) == ["[c].conllu", "b/x.conllu"]
    assert documents(f"{path}/[c].conllu") == ["[c].conllu"]
    assert documents(f"{path}/a/y.txt") == ["y.txt"]
    assert documents(f"{path}/*/?.*") == ["a/y.txt", "b/x.conllu"]
    assert documents(f"{path}/**/*.conllu") == ["[c].conllu", "b/x.conllu"]
    monkeypatch.chdir(path)
    assert documents("*/x.conllu") == ["b/x.conllu"]
    assert documents("b") == ["x.conllu"]


def test_a_pickled_source_is_the_same(save: Save) -> None:
    source = ConlluFiles(save(DOGS + ZUM))
    copied = pickle.loads(pickle.dumps(source))
    assert [copied[i] for i in range(len(copied))] == [source[0], source[1]]


def random_treebank(n: int, seed: int) -> str:
    rng = random.Random(seed)
    text = ""
    for i in range(n):
        rows, number = [f"# sent_id = {i}"], 1
        while number <= rng.randint(1, 12):
            misc = rng.choice(["_", "SpaceAfter=No", "Typo=Yes|SpaceAfter=No", "SpacesAfter=\\n"])
            if rng.random() < 0.2:
                rows.append(row(f"{number}-{number + 1}", "abcd", "_", misc))
                parts = rng.choice([("ab", "cd"), ("a", "the")])
                rows += [row(number + k, part, rng.choice(UPOS)) for k, part in enumerate(parts)]
                number += 2
            else:
                rows.append(row(number, rng.choice(["a", "β", "...", "#", "1-2", "😀"]), rng.choice(UPOS), misc))
                number += 1
            if rng.random() < 0.1:
                rows.append(row(f"{number - 1}.1", "empty"))
        text += sentence(*rows)
    return text


def test_against_another_parser(save: Save) -> None:
    conllu = pytest.importorskip("conllu")
    text = random_treebank(200, 0)
    source = ConlluFiles(save(text))
    reference = conllu.parse(text)
    assert len(source) == len(reference) == 200
    for i, tokens in enumerate(reference):
        expected, behind = "", 0
        places, tags = [], []
        for token in tokens:
            number = token["id"]
            if isinstance(number, tuple) and number[1] == ".":
                continue
            if isinstance(number, tuple):
                inner = [t for t in tokens if isinstance(t["id"], int) and number[0] <= t["id"] <= number[2]]
                forms = [t["form"] for t in inner] if "".join(t["form"] for t in inner) == token["form"] else None
                tags += [t["upos"] for t in inner] if forms else [inner[0]["upos"]]
                behind = number[2]
            elif number > behind:
                forms = None
                tags.append(token["upos"])
            else:
                continue
            for form in forms or [token["form"]]:
                places.append((len(expected), len(expected) + len(form)))
                expected += form
            expected += "" if (token["misc"] or {}).get("SpaceAfter") == "No" else " "
        example = source[i]
        assert example.text == expected.rstrip()
        assert list(example.spans) == places
        assert [UPOS[c] for c in example.concepts] == tags


# -- bad input ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"field": "head"}, r"field must be one of \['upos', 'xpos', 'deprel'\], but is 'head'"),
        ({"field": "xpos"}, "concepts must be given where field is 'xpos'"),
        ({"concepts": {"noun": ["NN"]}}, "concepts must be made of the tags .*, but 'noun' holds 'NN'"),
        ({"concepts": {}}, "concepts must name at least one concept"),
    ],
)
def test_bad_arguments(save: Save, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ConlluFiles(save(DOGS), **arguments)


def test_paths_that_lead_nowhere(save: Save) -> None:
    path = save("# only a comment\n\n", "b.txt")
    with pytest.raises(ValueError, match=r"at least one file \*\.conllu, but there is none at '.*treebank'"):
        ConlluFiles(path)
    with pytest.raises(ValueError, match=r"but there is nothing at '.*nowhere'"):
        ConlluFiles(f"{path}/nowhere")
    with pytest.raises(ValueError, match=r"path must lead to at least one file, but there is none at '.*/\*\.conll'"):
        ConlluFiles(f"{path}/*.conll")
    with pytest.raises(ValueError, match=r"at least one sentence, but there is none at '.*b\.txt'"):
        ConlluFiles(f"{path}/b.txt")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["1\tDogs\tdog\tNOUN"], "line 14: a word must have 10 columns with tabs between, but has 4"),
        ([row(1, "Dogs").replace("\t", "  ")], "line 14: a word must have 10 columns .* has 1$"),
        ([row(1, "Dogs"), row("two", "bark")], "line 15: the number of a word must be 2 here, but is 'two'"),
        ([row(1, "Dogs"), row(3, "bark")], "line 15: the number of a word must be 2 here, but is '3'"),
        ([row("²", "Dogs")], "line 14: the number of a word must be 1 here, but is '²'"),
        ([row("2-1", "Dogs"), row(1, "Dogs")], "line 14: the number of a word must be 1 here, but is '2-1'"),
        ([row("1-2", "ab"), row("1-2", "ab"), row(1, "a"), row(2, "b")], "line 15: the number .* is '1-2'"),
        ([row("1-3", "zum"), row(1, "zu"), row(2, "dem")], "line 14: 'zum' must reach to word 3, but .* word 2"),
        ([row("1-2", "zum")], "line 14: 'zum' must reach to word 2, but the sentence ends with word 0"),
        ([row(1, "")], "line 14: a word must have a form, but it is empty"),
        ([row(1, "Dogs", "NN")], r"line 14: a part of speech must be one of \['NOUN', .*\], but is 'NN'"),
        (
            ["# text = Dogs bark.", row(1, "Dogs"), row(2, "meow"), row(3, ".")],
            "line 16: 'meow' must come next in the sentence, but 'Dogs bark.' continues with 'bark.'",
        ),
        (["# text = Dogs", row(1, "Dogs"), row(2, "bark")], "line 16: 'bark' must come next .* continues with ''"),
        (["# text = Dogs bark", row(1, "Dogs")], "line 14: the words of 'Dogs bark' must reach its end, but leave"),
    ],
)
def test_a_malformed_sentence(save: Save, rows: list[str], message: str) -> None:
    source = ConlluFiles(save(DOGS + sentence(*rows) + ZUM))
    assert len(source) == 3
    for _ in range(2):
        with pytest.raises(UnreadableError, match=f"'a.conllu' cannot be read: a.conllu, {message}"):
            source[1]
    assert source[0].text.startswith("Dogs")
    assert source[2].text == "Er geht zum See."


def test_bytes_that_are_no_text(save: Save) -> None:
    text = ZUM.encode() + b"# newdoc id = bad\n" + row(1, "caf").encode().replace(b"caf", b"caf\xe9", 1) + b"\n"
    source = ConlluFiles(save(text))
    assert len(source) == 2
    place = text.index(0xE9)
    line = text[:place].count(b"\n") + 1
    message = rf"'bad' cannot be read: 'a.conllu' must be UTF-8, but its byte {place} \(in line {line}\) is not"
    with pytest.raises(UnreadableError, match=message):
        source[1]


def test_random_bytes(save: Save) -> None:
    rng = random.Random(0)
    for _ in range(50):
        path = save(bytes(rng.choice(b"12\t\n\n#=-_ text\xc3\xa9") for _ in range(300)))
        try:
            source = ConlluFiles(path)
        except ValueError:
            continue
        for i in range(len(source)):
            with pytest.raises(UnreadableError, match=r"line|byte"):
                source[i]


def test_a_file_that_is_gone(save: Save) -> None:
    path = Path(save(DOGS + ZUM), "a.conllu")
    source = ConlluFiles(str(path))
    path.write_text(DOGS)
    with pytest.raises(UnreadableError, match=r"'a\.conllu' cannot be read: it has become shorter"):
        source[1]
    path.unlink()
    with pytest.raises(UnreadableError, match=r"'a\.conllu' cannot be read: No such file"):
        source[0]
