import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from sae_lightning.data.sources import HuggingFaceText, HuggingFaceTextStream, TextExample, UnreadableError

datasets = pytest.importorskip("datasets")

TEXTS = ["one", "two ü", "", None, "five", "six"]
LABELS = [1, 0, -1, 0, 1, None]
DOCUMENTS = ["a", "a", "b", "b", "c", "c"]
BOTH = pytest.mark.parametrize("kind", [HuggingFaceText, HuggingFaceTextStream])


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)  # it reads the environment only once


@pytest.fixture
def saved(tmp_path: Path) -> str:
    """A folder with a dataset that `save_to_disk` wrote."""
    label = datasets.ClassLabel(names=["bad", "good"])
    features = datasets.Features({"text": datasets.Value("string"), "label": label, "doc": datasets.Value("string")})
    rows = {"text": TEXTS, "label": LABELS, "doc": DOCUMENTS}
    path = tmp_path / "saved"
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(path)
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> str:
    """A folder with a file of JSON lines for each of two splits."""
    folder = tmp_path / "files"
    folder.mkdir()
    for split, texts in {"train": TEXTS, "test": ["held out"]}.items():
        rows = [{"text": text, "label": "good", "doc": i, "number": i} for i, text in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def read(source: HuggingFaceText | HuggingFaceTextStream, start: int = 0) -> list[TextExample | str]:
    """All rows from one on, and the messages of those that cannot be read."""
    if isinstance(source, HuggingFaceTextStream):
        return [str(e) if isinstance(e, UnreadableError) else e for e in source.read(start)]
    found: list[TextExample | str] = []
    for i in range(start, len(source)):
        try:
            found.append(source[i])
        except UnreadableError as error:
            found.append(str(error))
    return found


def expected(labels: list[Any], documents: list[str]) -> list[TextExample | str]:
    return [
        "'row 3' cannot be read: 'text' must be a text, but is None"
        if text is None
        else TextExample(document, text, concept=-1 if label is None else label)
        for text, label, document in zip(TEXTS, labels, documents, strict=True)
    ]


@BOTH
def test_a_saved_dataset(kind: Any, saved: str) -> None:
    source = kind(saved)
    assert source.concept_names == []
    assert read(source) == expected([-1] * 6, list("012345"))
    labelled = kind(saved, label_column="label", document_column="doc")
    assert labelled.concept_names == ["bad", "good"]
    assert read(labelled) == read(labelled) == expected(LABELS, DOCUMENTS)


@BOTH
def test_files_of_a_folder(kind: Any, files: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    names = ["bad", "good"]
    source = kind(files, label_column="label", document_column="doc", concept_names=names, cache_dir=cache)
    assert source.concept_names == names
    assert read(source) == expected([1] * 6, list("012345"))
    assert [e.text for e in read(kind(files, split="test", cache_dir=cache))] == ["held out"]


@BOTH
def test_data_files(kind: Any, files: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    path = f"{files}/train.jsonl"
    assert read(kind("json", data_files=path, cache_dir=cache)) == expected([-1] * 6, list("012345"))
    by_split = {"held": [path]}
    assert len(read(kind("json", data_files=by_split, split="held", cache_dir=cache))) == 6
    text = tmp_path / "plain.txt"
    text.write_text("one\ntwo\n")
    assert [e.text for e in read(kind("text", data_files=str(text), cache_dir=cache))] == ["one", "two"]


@BOTH
def test_a_saved_dataset_with_splits(kind: Any, tmp_path: Path) -> None:
    splits = {name: datasets.Dataset.from_dict({"content": [name]}) for name in ("train", "test")}
    path = str(tmp_path / "splits")
    datasets.DatasetDict(splits).save_to_disk(path)
    assert read(kind(path, split="test", text_column="content")) == [TextExample("0", "test")]
    with pytest.raises(ValueError, match=r"split must be one of dataset .*, \['train', 'test'\], but is 'dev'"):
        kind(path, split="dev", text_column="content")


@BOTH
def test_a_pickled_source_is_the_same(kind: Any, saved: str, files: str, tmp_path: Path) -> None:
    for source in (kind(saved), kind(files, cache_dir=str(tmp_path / "cache"))):
        assert read(pickle.loads(pickle.dumps(source))) == read(source)


def test_rows_in_any_order(saved: str) -> None:
    source = HuggingFaceText(saved)
    assert len(source) == 6
    assert source[5] == source[-1] == TextExample("5", "six")
    for index in (6, -7):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize("start", [0, 1, 4, 6, 9])
def test_a_stream_goes_on_where_it_is_told(saved: str, files: str, tmp_path: Path, start: int) -> None:
    for source in (HuggingFaceTextStream(saved), HuggingFaceTextStream(files, cache_dir=str(tmp_path / "cache"))):
        assert read(source, start) == read(source)[start:]


def test_a_stream_from_below_zero(saved: str) -> None:
    with pytest.raises(ValueError, match="start must be at least 0, but is -1"):
        next(HuggingFaceTextStream(saved).read(-1))


# -- bad input ------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text_column": "body"}, r"text_column must be one of .*, \['text', 'label', 'doc'\], but is 'body'"),
        ({"label_column": "topic"}, r"label_column must be one of .*, \['text', 'label', 'doc'\], but is 'topic'"),
        ({"document_column": "id"}, r"document_column must be one of .*, \['text', 'label', 'doc'\], but is 'id'"),
        ({"label_column": "doc"}, "concept_names must be given where label_column .*, but 'doc' is of type Value"),
        ({"concept_names": ["a"]}, r"concept_names must be None where label_column is None, but are \['a'\]"),
        ({"config": "en"}, "config must be None for .*saved', which was saved to disk, but is 'en'"),
        ({"revision": "main"}, "revision must be None for .*saved', which was saved to disk, but is 'main'"),
        ({"split": "test"}, r"split must be one of dataset .*, \['train'\], but is 'test'"),
    ],
)
def test_bad_arguments(kind: Any, saved: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(saved, **arguments)


@BOTH
def test_datasets_that_cannot_be_loaded(kind: Any, files: str, tmp_path: Path) -> None:
    cache = str(tmp_path / "cache")
    with pytest.raises(ValueError, match="dataset 'nobody/nothing' must be one that can be loaded, but is not: "):
        kind("nobody/nothing", cache_dir=cache)
    with pytest.raises(ValueError, match=r"files' must be one that can be loaded, but is not: .*dev"):
        kind(files, split="dev", cache_dir=cache)
    with pytest.raises(ValueError, match=r"text_column must be one of .*, \['text', .*'number'\], but is 'body'"):
        kind(files, text_column="body", cache_dir=cache)
    Path(files, "train.jsonl").write_text('{"text": ')
    with pytest.raises(ValueError, match=r"files' must be one that can be (loaded|read), but is not: "):
        kind(files, cache_dir=cache)


@BOTH
def test_rows_that_cannot_be_read(kind: Any, tmp_path: Path) -> None:
    rows = {"text": [1, 2], "label": ["ugly", "good"], "doc": [None, "a"], "words": ["x", "y"]}
    path = str(tmp_path / "rows")
    datasets.Dataset.from_dict(rows).save_to_disk(path)
    assert read(kind(path))[1] == "'row 1' cannot be read: 'text' must be a text, but is 2"
    labelled = read(kind(path, text_column="words", label_column="label", concept_names=["bad", "good"]))
    assert labelled[0] == "'row 0' cannot be read: a label must be one of ['bad', 'good'] or its number, but is 'ugly'"
    assert labelled[1] == TextExample("1", "y", concept=1)
    named = read(kind(path, text_column="words", document_column="doc"))
    assert named == ["'row 0' cannot be read: 'doc' must name its document, but is None", TextExample("a", "y")]


@BOTH
@pytest.mark.parametrize("form", ["text", "csv", "json"])
@pytest.mark.parametrize("found", ["by name", "in a folder", "by a pattern"])
def test_a_file_that_is_not_utf8_is_named(kind: Any, form: str, found: str, tmp_path: Path) -> None:
    folder, cache = tmp_path / "files", str(tmp_path / "cache")
    folder.mkdir()
    line = '{"text": "%s"}\n' if form == "json" else "%s\n"
    lines = [("" if form == "json" else "text\n"), line % "first", line % "caf\xe9"]
    path = folder / f"bad.{ {'text': 'txt', 'csv': 'csv', 'json': 'jsonl'}[form] }"
    path.write_text("".join(lines), encoding="latin-1")
    (folder / f"also{path.suffix}").write_text(lines[0] + line % "good \xe9", encoding="utf-8")
    place = "".join(lines).index("\xe9")
    source = {"by name": (form, str(path)), "in a folder": (str(folder), None), "by a pattern": (form, f"{folder}/b*")}
    name, data_files = source[found]
    with pytest.raises(ValueError, match=rf"'{path}' must be UTF-8, but its byte {place} \(in line [23]\) is not"):
        raise_first(kind(name, data_files=data_files, cache_dir=cache))


def raise_first(source: HuggingFaceText | HuggingFaceTextStream) -> None:
    """Read all rows, and raise the error of the first that cannot be read."""
    for row in source.read(0) if isinstance(source, HuggingFaceTextStream) else (source[i] for i in range(len(source))):
        if isinstance(row, UnreadableError):
            raise row
