"""The splits of a dataset as rows: of files of words, read here as text, and of Arrow, as ``datasets`` reads them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fusion_workbench.datamodules.rows.csv_files import read_table
from fusion_workbench.datamodules.rows.files import read_entries
from fusion_workbench.datamodules.rows.rows import BadRow, WrittenNumber
from fusion_workbench.datamodules.rows.written import WrittenDecoder

DELIMITED = (".csv", ".tsv")  # files of words: cells are text
WORDS = (*DELIMITED, ".json", ".jsonl")

_BATCH = 64  # rows read at once


@dataclass(frozen=True, slots=True)
class Record:
    """A row: its columns, or why it is none, and where it stands."""

    values: Mapping[str, Any] | BadRow
    line: int  # in its file, from 1; of Arrow the number
    number: int  # in the split, from 1
    file: str = ""  # where rows stand in one


class Table(Protocol):
    """A split of a dataset."""

    def columns(self) -> Sequence[str]:
        """Those that it has; of JSON, those that a row had that was read."""

    def records(self) -> Iterator[Record]: ...


class WordTable:
    """Files of words: CSV, TSV, JSON and JSON lines.

    Neither pandas nor ``datasets`` reads them: both make of a column what its cells look like, so that ``007``, ``NA``
    or a number among words change, and the latter keeps what it once read in a cache.

    Args:
        files: in the order of their rows.
        suffix: what they are, one of :data:`WORDS`; empty: each by its own.
        separator: of cells, see :func:`.csv_files.read_table`.
        pictures: the files are a folder of images' metadata, whose ``file_name`` (``file_names``, ``x_file_name``) are
            the column ``image`` (``images``, ``x``), below the file's folder.
    """

    def __init__(self, files: Sequence[Path], suffix: str = "", separator: str = "", pictures: bool = False) -> None:
        self.files = tuple(files)
        self.suffix = suffix
        self.separator = separator
        self.pictures = pictures
        self._columns: dict[str, None] = {}

    def columns(self) -> Sequence[str]:
        return list(self._columns)

    def records(self) -> Iterator[Record]:
        number = 0
        for file in self.files:
            delimited = (self.suffix or file.suffix.lower()) in DELIMITED
            names, entries = read_table(file, self.separator) if delimited else ([], read_entries(file))
            self._columns |= dict.fromkeys(_named(name) if self.pictures else name for name in names)
            for entry in entries:
                number += 1
                values: Any = entry.value
                if not isinstance(values, dict | BadRow):
                    values = BadRow("not an object", "the row is no object with columns")
                if self.pictures and isinstance(values, dict):
                    values = {_named(key): _placed(key, value, file.parent) for key, value in values.items()}
                if isinstance(values, dict):
                    self._columns |= dict.fromkeys(values)
                yield Record(values, entry.line, number, str(file))


class ArrowTable:
    """A ``datasets.Dataset``. Images are the bytes or the path that are kept: nothing is opened, or fetched, here.

    Args:
        table: the split.
        selected: the columns to read, of those that it has.
    """

    def __init__(self, table: Any, selected: Sequence[str]) -> None:
        self._names = list(table.column_names)
        self.features = dict(table.features)
        self.table = table.select_columns([name for name in self._names if name in selected]).with_format("arrow")
        self._as_written = {
            name: read for name in self.table.column_names if (read := _as_written(self.features[name])) is not None
        }

    def columns(self) -> Sequence[str]:
        return self._names

    def records(self) -> Iterator[Record]:
        rows = (row for batch in self.table.iter(_BATCH) for row in batch.to_pylist())
        for number, row in enumerate(rows, 1):
            yield Record(self._written(row), number, number)

    def row(self, at: int) -> Mapping[str, Any]:
        """Row ``at``, from 0."""
        (row,) = self.table[at].to_pylist()
        return self._written(row)

    def fractional(self, columns: Sequence[str]) -> list[str]:
        """Those of ``columns`` that hold floating-point numbers, whose text the file does not have."""
        return [name for name in columns if name in self.features and _is_fractional(self.features[name])]

    def pictures(self) -> list[str]:
        """The columns of images, films or sounds that are not read."""
        kinds = ("Image", "Video", "Audio")
        return [
            name
            for name in self._names
            if name not in self.table.column_names and any(f"{kind}(" in repr(self.features[name]) for kind in kinds)
        ]

    def _written(self, row: dict[str, Any]) -> dict[str, Any]:
        for name, read in self._as_written.items():
            row[name] = read(row[name])
        return row


def _named(key: str) -> str:
    """A column of metadata as ``datasets`` names it when it holds files."""
    if key in ("file_name", "file_names"):
        return "image" if key == "file_name" else "images"
    return key.removesuffix("_file_names").removesuffix("_file_name")


def _placed(key: str, value: Any, folder: Path) -> Any:
    if _named(key) == key:
        return value
    if isinstance(value, list):
        return [_placed(key, one, folder) for one in value]
    return os.path.join(folder, value) if isinstance(value, str) else value


# --- Arrow's values as the words they stand for -------------------------------------------------------------------

_Read = Callable[[Any], Any]


def _as_written(feature: Any) -> _Read | None:
    """What makes a value of a feature what was meant: a class's name, JSON that is kept as text, a short fraction."""
    inner = getattr(feature, "feature", None)
    if isinstance(feature, list):
        inner = feature[0]
    if isinstance(feature, dict):
        of_key = {key: read for key, one in feature.items() if (read := _as_written(one)) is not None}
        return (lambda value: _each_key(value, of_key)) if of_key else None
    if inner is not None:
        read = _as_written(inner)
        return (lambda value: _each(value, read)) if read is not None else None
    kind = type(feature).__name__
    if kind == "ClassLabel":
        names = list(feature.names)
        return lambda value: names[value] if isinstance(value, int) and 0 <= value < len(names) else value
    if kind == "Json":
        return _from_json
    if kind == "Value" and feature.dtype in ("float16", "float32"):
        return lambda value: _short(value, feature.dtype)
    return None


def _each(values: Any, read: _Read) -> Any:
    return [read(value) for value in values] if isinstance(values, list) else values


def _each_key(values: Any, of_key: Mapping[str, _Read]) -> Any:
    if not isinstance(values, dict):
        return values
    return {key: of_key[key](value) if key in of_key else value for key, value in values.items()}


def _from_json(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        value, _ = WrittenDecoder().decode(text.strip())
    except (ValueError, RecursionError):
        return text
    return text if isinstance(value, BadRow) else value


def _short(value: Any, dtype: str) -> Any:
    """``0.1``, which in the 64 bits of Python is 0.10000000149011612."""
    import numpy as np

    if not isinstance(value, float) or not math.isfinite(value):
        return value
    return WrittenNumber(str(np.dtype(dtype).type(value)))


def _is_fractional(feature: Any) -> bool:
    inner = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    if inner is not None:
        return _is_fractional(inner)
    return str(getattr(feature, "dtype", "")).startswith("float")
