import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sae_lightning.data.sources import JsonLines, Source, TextExample, TextFiles, UnreadableError

Save = Callable[..., str]

TEXT = "  first line\nsecond\n \n\t\n\nthird ünd 😀\u2028same line\n\nlast"
LINES = ["  first line", "second", "third ünd 😀\u2028same line", "last"]
PARAGRAPHS = ["  first line\nsecond", "third ünd 😀\u2028same line", "last"]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Write files; return their folder."""

    def write(files: dict[str, str | bytes]) -> str:
        for name, content in files.items():
            path = tmp_path / "texts" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(tmp_path / "texts")

    return write


def contents(source: Source[TextExample]) -> list[str]:
    return [source[i].text for i in range(len(source))]


# -- text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize(("unit", "expected"), [("line", LINES), ("paragraph", PARAGRAPHS), ("file", [TEXT])])
def test_units(save: Save, unit: Any, expected: list[str], end: str, start: str) -> None:
    path = save({"a.txt": start + TEXT.replace("\n", end)})
    source = TextFiles(path, unit)
    assert source.concept_names == []
    assert contents(source) == expected
    assert source[0] == TextExample("a.txt", expected[0])
    assert source[-1] == source[len(source) - 1]
    for index in (len(source), -len(source) - 1):
        with pytest.raises(IndexError):
            source[index]


def test_against_plain_reading(save: Save) -> None:
    files = {f"{i}.txt": "\n".join("ü" * ((i * j) % 5) for j in range(40)) for i in range(10)}
    path = save(files)
    for unit, pattern in (("line", "\n"), ("paragraph", "\n\n+"), ("file", r"\Z(?!)")):
        expected = [
            (name, piece.strip("\n") if unit != "file" else piece)
            for name in sorted(files)
            for piece in re.split(pattern, (Path(path) / name).read_text())
            if piece.strip()
        ]
        source = TextFiles(path, unit)  # type: ignore[arg-type]
        assert [(source[i].document, source[i].text) for i in range(len(source))] == expected


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8-sig", "shift_jis"])
def test_encodings(save: Save, encoding: str) -> None:
    text = "one\n\nゴース" if encoding == "shift_jis" else "é ü\n\nß"
    assert contents(TextFiles(save({"a.txt": text.encode(encoding)}), encoding=encoding)) == text.split("\n\n")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "cp037"])
def test_encodings_with_other_line_ends(save: Save, encoding: str) -> None:
    path = save({"a.txt": "é\n\nü".encode(encoding)})
    assert contents(TextFiles(path, "file", encoding)) == ["é\n\nü"]
    for unit in ("line", "paragraph"):
        with pytest.raises(ValueError, match=f"as one byte for unit = '{unit}', but is '{encoding}'"):
            TextFiles(path, unit, encoding)  # type: ignore[arg-type]


def test_documents(save: Save) -> None:
    path = save({"b.txt": "1\n\n2", "a/c.txt": "3", "a/d.md": "4", "empty.txt": "", "blank.txt": "\n", "[x].txt": "5"})
    source = TextFiles(path)
    assert [(source[i].document, source[i].text) for i in range(len(source))] == [
        ("[x].txt", "5"),
        ("a/c.txt", "3"),
        ("b.txt", "1"),
        ("b.txt", "2"),
    ]
    assert TextFiles(f"{path}/[x].txt")[0].document == "[x].txt"
    assert TextFiles(f"{path}/*/d.*")[0].document == "a/d.md"
    assert contents(TextFiles(path, "file")) == ["5", "3", "1\n\n2"]


def test_a_pickled_source_is_the_same(save: Save) -> None:
    source = TextFiles(save({"a.txt": TEXT}))
    assert contents(pickle.loads(pickle.dumps(source))) == contents(source) == PARAGRAPHS


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_bytes_that_are_no_text(save: Save, start: bytes) -> None:
    data = start + b"good\n\nba\xffd\n\nalso good"
    source = TextFiles(save({"a/b.txt": data}))
    assert len(source) == 3
    for _ in range(2):
        message = f"'a/b.txt' must be UTF-8, but its byte {data.index(0xFF)} \\(in line 3\\) is not"
        with pytest.raises(UnreadableError, match=message):
            source[1]
    assert source[2].text == "also good"
    with pytest.raises(UnreadableError, match=f"'a/b.txt' must be UTF-8, but its byte {data.index(0xFF)} "):
        TextFiles(save({}), "file")[0]
    with pytest.raises(UnreadableError, match=f"'a/b.txt' must be ASCII, but its byte {data.index(0xFF)} "):
        TextFiles(save({}), encoding="ascii")[1]


def test_files_that_change(save: Save) -> None:
    path = Path(save({"a.txt": "one\n\ntwo"}), "a.txt")
    source = TextFiles(str(path))
    path.write_text("one")
    with pytest.raises(UnreadableError, match=r"'a\.txt' cannot be read: it has become shorter"):
        source[1]
    path.unlink()
    with pytest.raises(UnreadableError, match=r"'a\.txt' cannot be read: No such file"):
        source[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unit": "word"}, r"unit must be one of \['line', 'paragraph', 'file'\], but is 'word'"),
        ({"encoding": "utf-9"}, "encoding must be one that Python knows, but is 'utf-9'"),
        ({"encoding": "rot13"}, "encoding must be one that Python knows, but is 'rot13'"),
        ({"path": "/nowhere/at/all"}, "path must be a file, .* but there is nothing at '/nowhere/at/all'"),
        ({"path": ""}, "path must be a file, .* but there is nothing at ''"),
        ({"path": "/nowhere/*.txt"}, r"path must lead to at least one file, but there is none at '/nowhere/\*\.txt'"),
    ],
)
def test_bad_arguments(save: Save, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextFiles(**{"path": save({"a.txt": TEXT}), **arguments})


def test_no_text(save: Save) -> None:
    path = save({"a.txt": "\n \n", "b.md": "text"})
    with pytest.raises(ValueError, match="path must lead to at least one text, but there is none at"):
        TextFiles(path)
    Path(path, "a.txt").unlink()
    with pytest.raises(ValueError, match=r"path must lead to at least one file \*\.txt, but there is none at"):
        TextFiles(path)


# -- JSON -----------------------------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [
    {"text": "one\nü", "label": "good", "id": "x"},
    {"text": "", "label": 0, "id": "x", "more": [1]},
    {"text": "three", "label": None, "id": 7},
    {"text": "four", "label": -1, "id": "y"},
]


def as_lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_json_lines(save: Save) -> None:
    path = save({"b.jsonl": "\n" + as_lines(ROWS), "a/a.jsonl": as_lines(ROWS[:1]), "c.json": "[]"})
    source = JsonLines(path)
    assert source.concept_names == []
    assert contents(source) == ["one\nü", *(row["text"] for row in ROWS)]
    assert [source[i].document for i in range(3)] == ["a/a.jsonl:1", "b.jsonl:2", "b.jsonl:3"]
    assert {source[i].concept for i in range(len(source))} == {-1}
    copied = pickle.loads(pickle.dumps(source))
    assert copied[-1] == source[4]


def test_json_lines_with_concepts(save: Save) -> None:
    path = save({"a.jsonl": as_lines(ROWS)})
    source = JsonLines(path, label_key="label", document_key="id", concept_names=["bad", "good"])
    assert source.concept_names == ["bad", "good"]
    assert [(source[i].document, source[i].concept) for i in range(4)] == [("x", 1), ("x", 0), ("7", -1), ("y", -1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"text": "a"', r"'a\.jsonl:2' cannot be read: Expecting"),
        (
            b'{"text": "\xff"}',
            r"'a\.jsonl:2' cannot be read: 'a\.jsonl' must be UTF-8, but its byte \d+ \(in line 2\) is not",
        ),
        (b'{"text": "\\ud800"}', r"'a\.jsonl:2' cannot be read: .*surrogates not allowed"),
        (b"[1]", r"it must hold 'text', but holds \[1\]"),
        (b'"text"', "it must hold 'text', but holds 'text'"),
        (b'{"title": "a", "id": 1}', r"it must hold 'text', but holds \['title', 'id'\]"),
        (b'{"text": null}', "'text' must be a text, but is None"),
        (b'{"text": "a"}', "it must hold 'label', but holds"),
        (b'{"text": "a", "label": "ugly"}', r"a label must be one of \['bad', 'good'\] or its number, but is 'ugly'"),
        (b'{"text": "a", "label": 2}', "a label must be .*, but is 2"),
        (b'{"text": "a", "label": true}', "a label must be .*, but is True"),
        (b"[" * 100_000, "nested too deep"),
    ],
)
def test_bad_lines(save: Save, line: bytes, message: str) -> None:
    good = as_lines(ROWS[:1]).encode()
    source = JsonLines(save({"a.jsonl": good + line + b"\n" + good}), label_key="label", concept_names=["bad", "good"])
    with pytest.raises(UnreadableError, match=message):
        source[1]
    assert source[0].text == source[2].text == "one\nü"


def test_bad_json_documents(save: Save) -> None:
    path = save({"a.jsonl": as_lines([{"text": "a", "id": 1.5}])})
    with pytest.raises(UnreadableError, match=r"'id' must be a text or an integer, but is 1\.5"):
        JsonLines(path, document_key="id")[0]


def test_bad_json_arguments(save: Save) -> None:
    path = save({"a.jsonl": as_lines(ROWS), "b.jsonl": ""})
    with pytest.raises(ValueError, match="concept_names must be given with label_key and only then, but are None with"):
        JsonLines(path, label_key="label")
    with pytest.raises(ValueError, match=r"only then, but are \['a'\] with label_key = None"):
        JsonLines(path, concept_names=["a"])
    with pytest.raises(ValueError, match="path must lead to at least one line, but there is none"):
        JsonLines(f"{path}/b.jsonl")
