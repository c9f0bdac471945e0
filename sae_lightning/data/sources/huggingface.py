"""Texts of Hugging Face datasets, from local files or the hub."""

import glob
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import count
from typing import Any

from sae_lightning.data.sources.base import Source, StreamedSource, TextExample, UnreadableError
from sae_lightning.data.sources.concepts import concept_of_label
from sae_lightning.run.files import EncodingError, read_text

DataFiles = str | list[str] | dict[str, str | list[str]]

_TEXT_FILES = (".txt", ".csv", ".tsv", ".json", ".jsonl")


class HuggingFaceText(Source[TextExample]):
    """Texts of a dataset on disk, which is downloaded first if necessary, with random access.

    Args:
        name: Name of a dataset on the hub; a folder of files, or one written by `save_to_disk`; or the format of
            `data_files`, such as `json`, `csv`, `parquet` or `text`. Code that comes with a dataset is never executed.
        config: Name of one of the dataset's configurations.
        split: Name of the split, or a slice such as `train[:1000]` (not for datasets written by `save_to_disk`).
        revision: Branch, tag or commit on the hub.
        text_column: Column of the texts.
        label_column: Column of each text's concept: its name or index, where None and -1 stand for none.
        document_column: Column of the document of each text; None makes each row a document, named by its number.
        data_files: Files to read, for all splits or by split.
        concept_names: Names of the concepts; None takes those of `label_column`, if it holds class labels.
        cache_dir: Folder for downloaded and converted files; None takes the default of `datasets`.

    Raises:
        ValueError: If the dataset cannot be loaded or lacks a column, or an argument is out of range.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        text_column: str = "text",
        label_column: str | None = None,
        document_column: str | None = None,
        data_files: DataFiles | None = None,
        concept_names: list[str] | None = None,
        cache_dir: str | None = None,
    ) -> None:
        dataset = _load(name, config, split, revision, data_files, cache_dir, streaming=False)
        self._rows = _Rows(name, text_column, label_column, document_column)
        self._data_files = data_files
        self._rows.check_columns(dataset.column_names)
        self.concept_names = self._rows.names(dataset.features, concept_names)
        self._dataset = dataset.select_columns(self._rows.columns)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._dataset)

    def __getitem__(self, index: int) -> TextExample:
        """Read the text of one row."""
        index = range(len(self))[index]
        try:
            row = self._dataset[index]
        except UnicodeDecodeError as error:  # JSON files are decoded on access
            raise UnreadableError(f"row {index}", _reason(error, self._rows.name, self._data_files)) from None
        return self._rows.example(row, index, self.concept_names)


class HuggingFaceTextStream(StreamedSource[TextExample]):
    """Texts of a dataset that is streamed in its own order, without downloading it first.

    Args:
        name: Name of a dataset on the hub; a folder of files, or one written by `save_to_disk`; or the format of
            `data_files`, such as `json`, `csv`, `parquet` or `text`. Code that comes with a dataset is never executed.
        config: Name of one of the dataset's configurations.
        split: Name of the split.
        revision: Branch, tag or commit on the hub.
        text_column: Column of the texts.
        label_column: Column of each text's concept: its name or index, where None and -1 stand for none.
        document_column: Column of the document of each text; None makes each row a document, named by its number.
        data_files: Files to read, for all splits or by split.
        concept_names: Names of the concepts; None takes those of `label_column`, if it holds class labels.
        cache_dir: Folder for downloaded files; None takes the default of `datasets`.

    Raises:
        ValueError: If the dataset cannot be loaded or lacks a column, or an argument is out of range.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        split: str = "train",
        revision: str | None = None,
        text_column: str = "text",
        label_column: str | None = None,
        document_column: str | None = None,
        data_files: DataFiles | None = None,
        concept_names: list[str] | None = None,
        cache_dir: str | None = None,
    ) -> None:
        self._dataset = _load(name, config, split, revision, data_files, cache_dir, streaming=True)
        self._rows = _Rows(name, text_column, label_column, document_column)
        self._data_files = data_files
        # some streams do not declare their columns: take those of the first row
        columns = self._dataset.column_names or list(_next_row(iter(self._dataset), name, data_files) or {})
        self._rows.check_columns(columns)
        self.concept_names = self._rows.names(self._dataset.features or {}, concept_names)

    def read(self, start: int) -> Iterator[TextExample | UnreadableError]:
        """Yield the texts of all rows from index `start` on, and an UnreadableError for each that cannot be read."""
        if start < 0:
            raise ValueError(f"start must be at least 0, but is {start}")
        rows = iter(self._dataset.select_columns(self._rows.columns).skip(start))
        for number in count(start):
            row = _next_row(rows, self._rows.name, self._data_files)
            if row is None:
                return
            try:
                yield self._rows.example(row, number, self.concept_names)
            except UnreadableError as error:
                yield error


class _Rows:
    """Converts the rows of a dataset to texts.

    Args:
        name: Name of the dataset, for errors.
        text: Column of the texts.
        label: Column of the concepts, if any.
        document: Column of the documents, if any.
    """

    def __init__(self, name: str, text: str, label: str | None, document: str | None) -> None:
        self.name = name
        self.text = text
        self.label = label
        self.document = document
        self.columns = list(dict.fromkeys(column for column in (text, label, document) if column is not None))

    def check_columns(self, columns: list[str]) -> None:
        given = {"text_column": self.text, "label_column": self.label, "document_column": self.document}
        for argument, column in given.items():
            if column is not None and column not in columns:
                raise ValueError(f"{argument} must be one of dataset {self.name!r}, {columns}, but is {column!r}")

    def names(self, features: Mapping[str, Any], names: list[str] | None) -> list[str]:
        """Return the names of the concepts."""
        if self.label is None:
            if names:
                raise ValueError(f"concept_names must be None where label_column is None, but are {names}")
            return []
        found = names or getattr(features.get(self.label), "names", None)
        if not found:
            raise ValueError(
                f"concept_names must be given where label_column holds no class labels, but {self.label!r} is of type "
                f"{features.get(self.label)}"
            )
        return list(found)

    def example(self, row: Mapping[str, Any], number: int, names: list[str]) -> TextExample:
        text = row.get(self.text)
        if not isinstance(text, str):
            raise UnreadableError(f"row {number}", f"{self.text!r} must be a text, but is {text!r:.200}")
        document = number if self.document is None else row.get(self.document)
        if document is None:
            raise UnreadableError(f"row {number}", f"{self.document!r} must name its document, but is None")
        try:
            concept = -1 if self.label is None else concept_of_label(row.get(self.label), names)
        except ValueError as error:
            raise UnreadableError(f"row {number}", str(error)) from None
        return TextExample(str(document), text, concept=concept)


def _next_row(rows: Iterator[Any], name: str, data_files: DataFiles | None) -> Mapping[str, Any] | None:
    """Return the next row of a stream; None at its end."""
    try:
        row: Mapping[str, Any] | None = next(rows, None)
    except Exception as error:  # hub, builders and files raise many types of errors
        reason = _reason(error, name, data_files)
        raise ValueError(f"dataset {name!r} must be one that can be read, but is not: {reason}") from None
    return row


def _reason(error: BaseException, name: str, data_files: DataFiles | None) -> str:
    """Return the root cause of an error of a dataset; if a file is not UTF-8, with the name of the file."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError):
        try:
            for path in _text_files(name, data_files):
                with suppress(OSError):
                    read_text(path)
        except EncodingError as found:
            return str(found)
    return str(error)


def _text_files(name: str, data_files: DataFiles | None) -> Iterator[str]:
    """Yield the local text files that a dataset is read from."""
    folder = os.path.expanduser(name)
    given = data_files.values() if isinstance(data_files, dict) else [data_files or "**"]
    patterns = [pattern for some in given for pattern in ([some] if isinstance(some, str) else some)]
    for pattern in patterns:
        whole = os.path.join(glob.escape(folder), pattern) if os.path.isdir(folder) else pattern
        yield from (path for path in sorted(glob.glob(whole, recursive=True)) if path.endswith(_TEXT_FILES))


def _load(
    name: str,
    config: str | None,
    split: str,
    revision: str | None,
    data_files: DataFiles | None,
    cache_dir: str | None,
    streaming: bool,
) -> Any:
    """Load one split of a dataset."""
    try:
        import datasets
    except ImportError:
        raise ValueError("a dataset of Hugging Face needs the package datasets: pip install datasets") from None
    folder = os.path.expanduser(name)
    if not any(os.path.isfile(os.path.join(folder, file)) for file in ("state.json", "dataset_dict.json")):
        try:
            return datasets.load_dataset(
                folder if os.path.isdir(folder) else name,
                config,
                split=split,
                revision=revision,
                data_files=data_files,
                cache_dir=cache_dir,
                streaming=streaming,
            )
        except Exception as error:  # hub, builders and files raise many types of errors
            reason = _reason(error, name, data_files)
            raise ValueError(f"dataset {name!r} must be one that can be loaded, but is not: {reason}") from None
    for argument, value in {"config": config, "revision": revision, "data_files": data_files}.items():
        if value is not None:
            raise ValueError(f"{argument} must be None for {name!r}, which was saved to disk, but is {value!r}")
    try:
        saved = datasets.load_from_disk(folder)
    except Exception as error:  # as above
        raise ValueError(f"dataset {name!r} must be one that can be loaded, but is not: {error}") from None
    splits = saved if isinstance(saved, dict) else {str(saved.split or "train"): saved}
    if split not in splits:
        raise ValueError(f"split must be one of dataset {name!r}, {list(splits)}, but is {split!r}")
    return splits[split].to_iterable_dataset() if streaming else splits[split]
