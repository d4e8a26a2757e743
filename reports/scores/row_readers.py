"""Rows of a file with the line that each stands on; whatever is wrong with the file, in one line."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fusion_workbench.core.errors import WorkbenchError
from fusion_workbench.core.parse import parse_json
from fusion_workbench.system.files import read_small

_MOST_BYTES = 10_000_000_000  # of a table of scores, which is read whole


def delimited(path: Path) -> tuple[list[str], Iterator[tuple[int, Sequence[Any]]]]:
    """The head and the rows of comma-, semicolon- or tab-separated values."""
    csv.field_size_limit(sys.maxsize)  # a column may hold whole answers
    text = _text(path)
    head = text.partition("\n")[0]
    sign = "\t" if path.suffix.lower() == ".tsv" else max(",;\t", key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=sign, strict=True)  # strict: an open quote is an error

    def lines() -> Iterator[tuple[int, list[str]]]:
        try:
            for values in reader:
                yield reader.line_num, values
        except csv.Error as error:
            raise WorkbenchError(f"{path}:{reader.line_num}: {error}.") from None

    every = lines()
    _, names = next(every, (0, []))
    if not any(name.strip() for name in names):
        raise WorkbenchError(f"{path}: the file is empty.")

    def rows() -> Iterator[tuple[int, Sequence[Any]]]:
        for line, values in every:
            if any(value.strip() for value in values[len(names) :]):
                raise WorkbenchError(
                    f"{path}:{line}: the row has {len(values)} values and the head {len(names)} columns (a decimal "
                    "comma, or text with a separator in it, stands in quotation marks)."
                )
            if any(values):
                yield line, values

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


class Objects(NamedTuple):
    """The objects of a JSON file, each with its line or number, and what stands beside them in the file."""

    header: Mapping[str, Any]
    rows: Iterator[tuple[int, Mapping[str, Any]]]


def objects_of(path: Path) -> Objects:
    """JSON lines; one JSON list of objects, which are then numbered; or a log of lmms-eval before 0.2: one object,
    whose ``logs`` are the objects and whose other keys are the header."""
    text = _text(path)
    start = text.lstrip()[:1]
    if start == "[":
        return Objects({}, _numbered(_json(text, f"{path}"), path))
    lines = [(number, words) for number, words in enumerate(text.split("\n"), 1) if words.strip()]
    if start == "{" and (len(lines) == 1 or not _is_json(lines[0][1])):
        whole = _whole(text)
        if whole is not None and isinstance(whole.get("logs"), list):
            return Objects({k: v for k, v in whole.items() if k != "logs"}, _numbered(whole["logs"], path))
        if whole is not None and (len(lines) > 1 or not _is_row(whole)):
            raise WorkbenchError(_no_rows(path, whole))
    return Objects({}, ((n, _object(_json(words, f"{path}", n), f"{path}:{n}")) for n, words in lines))


def _numbered(values: Sequence[Any], path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    return ((i, _object(value, f"{path}:{i}")) for i, value in enumerate(values, 1))


def _whole(text: str) -> dict[str, Any] | None:
    """The file as one object; None where it is none."""
    try:
        found = parse_json(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _is_json(words: str) -> bool:
    try:
        parse_json(words)
    except ValueError:
        return False
    return True


def _is_row(value: Mapping[str, Any]) -> bool:
    """Whether one object alone may be a row: what harnesses write of a whole run is none."""
    return not (isinstance(value.get("results"), Mapping) and ("configs" in value or "versions" in value))


def _no_rows(path: Path, whole: Mapping[str, Any]) -> str:
    if not _is_row(whole):
        return f"{path}: the results of a whole run, without the score of each document; --log_samples writes these."
    keys = ", ".join(list(whole)[:8])
    return f"{path}: one JSON object ({keys}) where one a line is wanted, a score each, or a list of them."


def _json(words: str, path: str, line: int | None = None) -> Any:
    try:
        return json.loads(words, object_pairs_hook=_once)
    except _Twice as error:
        raise WorkbenchError(f"{path}{f':{line}' if line else ''}: '{error}' stands twice in one object.") from None
    except json.JSONDecodeError as error:
        raise WorkbenchError(f"{path}:{line or error.lineno}: not valid JSON ({error.msg}).") from None
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets in brackets
        why = "nested too deep" if isinstance(error, RecursionError) else "a number is too long"
        raise WorkbenchError(f"{path}{f':{line}' if line else ''}: not JSON that can be read ({why}).") from None


class _Twice(Exception):
    """A key that an object holds twice."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Twice(next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])))
    return found


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
