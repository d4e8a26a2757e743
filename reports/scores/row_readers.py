"""Rows of a file with the line that each stands on; whatever is wrong with the file, in one line."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.files import read_small

_MOST_BYTES = 10_000_000_000  # of a table of scores, which is read whole


def delimited(path: Path) -> tuple[list[str], Iterator[tuple[int, Sequence[Any]]]]:
    """The head and the rows of comma-, semicolon- or tab-separated values."""
    csv.field_size_limit(sys.maxsize)  # a column may hold whole answers
    text = _text(path)
    head = text.partition("\n")[0]
    sign = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign)
    names = next(reader, [])
    if not any(name.strip() for name in names):
        raise WorkbenchError(f"{path}: the file is empty.")

    def rows() -> Iterator[tuple[int, Sequence[Any]]]:
        try:
            for values in reader:
                if any(values):
                    yield reader.line_num, values
        except csv.Error as error:
            raise WorkbenchError(f"{path}:{reader.line_num}: {error}.") from None

    return [name.strip() for name in names], rows()


def parquet(path: Path) -> tuple[list[str], Iterator[tuple[int, Sequence[Any]]]]:
    """The columns' names and the rows, counted from 1."""
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except Exception as error:  # torn or foreign: pyarrow raises many kinds
        raise WorkbenchError(f"{path}: not a Parquet file that can be read ({type(error).__name__}).") from None
    columns = [column.to_pylist() for column in table.columns]
    return list(table.column_names), ((i, values) for i, values in enumerate(zip(*columns, strict=True), 1))


def objects_of(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """JSON lines, or one JSON list of objects, which are then numbered instead."""
    text = _text(path)
    if text.lstrip().startswith("["):
        listed = _json(text, f"{path}")
        yield from ((i, _object(value, f"{path}:{i}")) for i, value in enumerate(listed, 1))
        return
    for line, words in enumerate(text.split("\n"), 1):
        if words.strip():
            yield line, _object(_json(words, f"{path}", line), f"{path}:{line}")


def _json(words: str, path: str, line: int | None = None) -> Any:
    try:
        return json.loads(words)
    except json.JSONDecodeError as error:
        raise WorkbenchError(f"{path}:{line or error.lineno}: not valid JSON ({error.msg}).") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
        why = "nested too deep" if isinstance(error, RecursionError) else "a number is too long"
        raise WorkbenchError(f"{path}{f':{line}' if line else ''}: not JSON that can be read ({why}).") from None


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise WorkbenchError(f"{where}: expected a JSON object, and found {type(value).__name__}.")
    return value


def _text(path: Path) -> str:
    try:
        return read_small(path, _MOST_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise WorkbenchError(f"{path}: not text in UTF-8.") from None
    except OSError as error:
        raise WorkbenchError(f"{path}: cannot be read ({error.strerror}).") from None
